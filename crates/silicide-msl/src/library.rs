//! Compiled libraries and their kernels.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use crate::abi::{self, EntryPoint, Thread};
use crate::compile::{Compiled, compile};
use crate::rewrite::{Entry, ParameterKind};
use crate::{Error, context};

/// How a source is compiled.
#[derive(Clone, Debug)]
pub struct CompileOptions {
    /// Check every access and look for races. Without, kernels run several times faster, and a kernel that leaves its
    /// bounds may do anything.
    pub checks: bool,
    /// Values of `[[function_constant(index)]]` variables.
    pub function_constants: Vec<(u32, Constant)>,
    /// Macros that are defined before the first line.
    pub defines: Vec<(String, String)>,
    /// The kernels are an NVIDIA GPU's: namespace `nvidia` has what these GPUs have beside Metal's language, `EMULATED_NVIDIA` is defined,
    /// and threadgroup memory is [`MAX_NVIDIA_THREADGROUP_BYTES`](crate::MAX_NVIDIA_THREADGROUP_BYTES).
    pub nvidia: bool,
    /// A folder that compiled libraries are kept in, made if need be. Without, nothing outlives the process.
    pub cache_dir: Option<PathBuf>,
    /// What messages call the source.
    pub name: String,
}

impl Default for CompileOptions {
    fn default() -> Self {
        CompileOptions {
            checks: true,
            function_constants: Vec::new(),
            defines: Vec::new(),
            nvidia: false,
            cache_dir: None,
            name: "kernel.metal".into(),
        }
    }
}

/// The value of a function constant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Constant {
    /// `bool`.
    Bool(bool),
    /// A signed integer of any size.
    Int(i64),
    /// An unsigned integer of up to 32 bits.
    Uint(u32),
    /// `float`, or what it converts to.
    Float(f32),
}

/// A compiled source with its kernels. Clones share it.
#[derive(Clone, Debug)]
pub struct Library {
    inner: Arc<Inner>,
}

impl Library {
    /// Compiles Metal Shading Language.
    ///
    /// # Errors
    ///
    /// [`Error::NoCompiler`] where there is no clang 19, [`Error::Compile`] with the compiler's words where the source is
    /// at fault, [`Error::Io`] where files cannot be written, [`Error::Usage`] where the options are.
    pub fn compile(source: &str, options: &CompileOptions) -> Result<Library, Error> {
        let defines = options.defines.iter().flat_map(|(name, value)| [name, value]);
        if defines.chain([&options.name]).any(|text| text.contains(['\n', '\r', '"', '\\'])) {
            return Err(Error::usage("the source's name and macros may not have quotes, backslashes or line ends"));
        }
        let compiled = compile(source, options)?;
        Ok(Library { inner: Arc::new(Inner::load(compiled, options)?) })
    }

    /// The kernels, in the order of the source.
    pub fn kernels(&self) -> impl Iterator<Item = &KernelInfo> {
        self.inner.kernels.iter().map(|kernel| &kernel.info)
    }

    /// The kernel of that name, the `host_name` where it has one.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] where there is none.
    pub fn kernel(&self, name: &str) -> Result<Kernel, Error> {
        let index = self.inner.kernels.iter().position(|kernel| kernel.info.name == name).ok_or_else(|| {
            let names: Vec<_> = self.kernels().map(|kernel| kernel.name.as_str()).collect();
            Error::usage(format!("{}: no kernel is named {name:?}; there are {names:?}", self.inner.name))
        })?;
        Ok(Kernel { library: self.clone(), index })
    }
}

/// A kernel of a library.
#[derive(Clone, Debug)]
pub struct Kernel {
    library: Library,
    index: usize,
}

impl Kernel {
    /// Its name and arguments.
    pub fn info(&self) -> &KernelInfo {
        &self.loaded().info
    }

    /// The library that it is from.
    pub fn library(&self) -> &Library {
        &self.library
    }

    pub(crate) fn loaded(&self) -> &LoadedKernel {
        &self.library.inner.kernels[self.index]
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.library.inner
    }
}

/// What a launch has to know of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelInfo {
    /// The name that it is found by.
    pub name: String,
    /// The line of its definition or instantiation.
    pub line: u32,
    /// Its arguments, in the order of the source.
    pub bindings: Vec<Binding>,
    /// Bytes of threadgroup memory that the kernel declares itself, alignment included.
    pub static_threadgroup_bytes: usize,
}

/// An argument of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The number in `[[buffer(n)]]` or `[[threadgroup(n)]]`.
    pub index: u32,
    /// The parameter's name.
    pub name: String,
    /// Where it lives.
    pub kind: BindingKind,
}

/// Where an argument of a kernel lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindingKind {
    /// `device` memory.
    Device {
        /// Not `const`.
        writable: bool,
    },
    /// `constant` memory.
    Constant {
        /// The size of the referenced type, or 0 for a pointer, which takes any length.
        bytes: usize,
    },
    /// `threadgroup` memory, whose size the launch gives.
    Threadgroup,
}

/// Where a `threadgroup` variable of a kernel lies in the static part of threadgroup memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Static {
    pub(crate) id: usize,
    pub(crate) bytes: usize,
}

#[derive(Debug)]
pub(crate) struct LoadedKernel {
    pub(crate) info: KernelInfo,
    pub(crate) entry: EntryPoint,
    pub(crate) statics: Vec<Static>,
}

/// Held while the runner's functions are given to an object.
static LOADING: Mutex<()> = Mutex::new(());

/// A loaded shared object.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) name: String,
    pub(crate) checks: bool,
    pub(crate) nvidia: bool,
    kernels: Vec<LoadedKernel>,
    path: PathBuf,
    /// The addresses of the whole object, and its constants.
    pub(crate) image: Range<u64>,
    // Dropped in this order: first the handle, then the file.
    _handle: Handle,
    _folder: Option<tempfile::TempDir>,
}

impl Inner {
    fn load(compiled: Compiled, options: &CompileOptions) -> Result<Inner, Error> {
        let Compiled { path, entries, folder } = compiled;
        let handle = Handle::open(&path)?;
        let image = handle.image(&path)?;
        // SAFETY: the file is one that this crate compiled: its check sum was verified, or it was made a moment ago.
        // The symbols have these types in `shim/runtime.h`.
        let statics = unsafe {
            let version = handle.symbol("__msl_abi")?.cast::<u32>().read();
            if version != abi::VERSION {
                let message = format!("{}: made by another version of the runner", path.display());
                return Err(Error::usage(message));
            }
            let table = handle.number("__msl_runtime")? as *mut u64;
            // An object that is loaded twice is one: it may be running, with the table that it has.
            let _loading = LOADING.lock();
            if table.read() == 0 {
                table.cast::<abi::Runtime>().write(context::RUNTIME);
            }
            let (begin, end) = (handle.number("__msl_statics_begin")?, handle.number("__msl_statics_end")?);
            let records = (end - begin) as usize / 24;
            // The table is absent, and null, where no kernel has threadgroup variables.
            if records == 0 { &[][..] } else { std::slice::from_raw_parts(begin as *const [u64; 3], records) }
        };
        let mut kernels = Vec::with_capacity(entries.len());
        for (number, entry) in entries.into_iter().enumerate() {
            let address = handle.symbol(&format!("__msl_kernel_{number}"))?;
            // SAFETY: as above; every kernel entry has this type.
            let point = unsafe { std::mem::transmute::<*mut c_void, EntryPoint>(address) };
            kernels.push(LoadedKernel { info: describe(entry, point), entry: point, statics: Vec::new() });
        }
        attribute_statics(&mut kernels, statics);
        Ok(Inner {
            name: options.name.clone(),
            checks: options.checks,
            nvidia: options.nvidia,
            kernels,
            path,
            image,
            _handle: handle,
            _folder: folder,
        })
    }

    /// The lines that belong to the return addresses, 0 for none.
    pub(crate) fn lines(&self, addresses: &[u64]) -> HashMap<u64, u32> {
        let mut lines = HashMap::new();
        let Ok(loader) = addr2line::Loader::new(&self.path) else { return lines };
        for &address in addresses.iter().filter(|address| self.image.contains(address)) {
            // The call is before the address that it returns to.
            let probe = address - self.image.start - 1 + loader.relative_address_base();
            let Ok(mut frames) = loader.find_frames(probe) else { continue };
            // Innermost first: the shim's own functions have another file name.
            while let Ok(Some(frame)) = frames.next() {
                let Some(location) = frame.location else { continue };
                if location.file.is_some_and(|file| file.ends_with(&self.name)) {
                    lines.extend(location.line.map(|line| (address, line)));
                    break;
                }
            }
        }
        lines
    }
}

/// Asks an entry for the sizes of its arguments.
fn describe(entry: Entry, point: EntryPoint) -> KernelInfo {
    let mut sizes = vec![0u64; entry.parameters.len().max(1)];
    let mut thread = Thread::empty();
    thread.query = sizes.as_mut_ptr();
    // SAFETY: with `query` set an entry only writes one size for each of its parameters.
    unsafe { point(&thread) };
    let bindings = entry.parameters.into_iter().zip(sizes).map(|(parameter, size)| Binding {
        index: parameter.index,
        name: parameter.name,
        kind: match parameter.kind {
            ParameterKind::Device => BindingKind::Device { writable: true },
            ParameterKind::DeviceConst => BindingKind::Device { writable: false },
            ParameterKind::Constant => BindingKind::Constant { bytes: size as usize },
            ParameterKind::Threadgroup => BindingKind::Threadgroup,
        },
    });
    KernelInfo { name: entry.name, line: entry.line, bindings: bindings.collect(), static_threadgroup_bytes: 0 }
}

/// Gives each record (address in the code, number, bytes) to the kernel whose code it is in.
fn attribute_statics(kernels: &mut [LoadedKernel], records: &[[u64; 3]]) {
    let mut order: Vec<(u64, usize)> =
        kernels.iter().enumerate().map(|(i, kernel)| (kernel.entry as usize as u64, i)).collect();
    order.sort_unstable();
    for &[address, id, bytes] in records {
        let after = order.partition_point(|&(start, _)| start <= address);
        let Some(&(_, owner)) = after.checked_sub(1).and_then(|i| order.get(i)) else { continue };
        let kernel = &mut kernels[owner];
        // A place in the code may be there more than once, in an unrolled loop.
        if kernel.statics.iter().all(|known| known.id != id as usize) {
            kernel.statics.push(Static { id: id as usize, bytes: bytes as usize });
            kernel.info.static_threadgroup_bytes += (bytes as usize).next_multiple_of(16);
        }
    }
}

/// An open shared object.
#[derive(Debug)]
struct Handle(*mut c_void);

// SAFETY: the dynamic loader's functions may be called from any thread.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    fn open(path: &std::path::Path) -> Result<Handle, Error> {
        use std::os::unix::ffi::OsStrExt;
        let name = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| Error::usage(format!("{}: the path has a zero byte", path.display())))?;
        // SAFETY: the name ends with a zero; the object has no initialisers that do anything.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            // SAFETY: after a failure dlerror gives a string of this thread, valid until its next call.
            let reason = unsafe { std::ffi::CStr::from_ptr(libc::dlerror()) }.to_string_lossy().into_owned();
            return Err(Error::io(format!("loading {}", path.display()), std::io::Error::other(reason)));
        }
        Ok(Handle(handle))
    }

    fn symbol(&self, name: &str) -> Result<*mut c_void, Error> {
        let missing = || Error::usage(format!("a compiled library lacks the symbol {name}"));
        let text = CString::new(name).map_err(|_| missing())?;
        // SAFETY: the handle is open, the name ends with a zero.
        let address = unsafe { libc::dlsym(self.0, text.as_ptr()) };
        if address.is_null() { Err(missing()) } else { Ok(address) }
    }

    /// The result of a function that takes nothing and gives a number.
    ///
    /// # Safety
    ///
    /// The symbol must be such a function.
    unsafe fn number(&self, name: &str) -> Result<u64, Error> {
        let address = self.symbol(name)?;
        // SAFETY: the caller's.
        Ok(unsafe { std::mem::transmute::<*mut c_void, extern "C" fn() -> u64>(address)() })
    }

    /// The addresses that the object takes.
    fn image(&self, path: &std::path::Path) -> Result<Range<u64>, Error> {
        // SAFETY: the functions take nothing and give addresses, see `shim/end.h`.
        let (start, end) = unsafe { (self.number("__msl_image_begin")?, self.number("__msl_image_end")?) };
        if start >= end {
            return Err(Error::usage(format!("{}: its image has no size", path.display())));
        }
        Ok(start..end)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: opened once, closed once.
        unsafe { libc::dlclose(self.0) };
    }
}
