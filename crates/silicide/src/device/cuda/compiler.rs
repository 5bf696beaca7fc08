//! Brings kernels to machine code through NVRTC, and keeps what it made.

use std::ffi::{CStr, CString, c_char};
use std::path::PathBuf;

use cudarc::nvrtc::sys::{self, nvrtcResult};
use silicide_msl::{CUDA_OPTIONS, CudaKernel, CudaOptions, cache, cuda_kernel};

use super::driver::failed;
use crate::device::Gpu;
use crate::{Error, Result};

/// Compiles for one architecture.
pub(super) struct Compiler {
    /// Such as `sm_90a`.
    architecture: String,
    /// NVRTC's own, such as (13, 0).
    pub(super) version: (i32, i32),
    cache: Option<PathBuf>,
}

impl Compiler {
    pub(super) fn new(capability: (u32, u32), cache: Option<PathBuf>) -> Result<Compiler> {
        // SAFETY: loading the library runs its initialisers only.
        if !unsafe { sys::is_culib_present() } {
            return Err(failed(
                "the CUDA compiler NVRTC (libnvrtc.so) is not here; install the CUDA toolkit, or `pip install \
                 nvidia-cuda-nvrtc` and put its folder on LD_LIBRARY_PATH",
            ));
        }
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both are variables of the call's types.
        check(unsafe { sys::nvrtcVersion(&mut major, &mut minor) }, "nvrtcVersion")?;
        // From 9.0 on, some instructions are only those of the very architecture.
        let suffix = if capability >= (9, 0) { "a" } else { "" };
        let architecture = format!("sm_{}{}{suffix}", capability.0, capability.1);
        Ok(Compiler { architecture, version: (major, minor), cache })
    }

    /// The machine code of a kernel whose threadgroups have at most `threads` threads.
    pub(super) fn compile(&self, gpu: &Gpu, threads: u32) -> Result<(CudaKernel, Vec<u8>)> {
        let failed = |message: String| Error::Kernel { kernel: gpu.entry.clone(), message };
        let name = gpu.source.path();
        let options = CudaOptions { name: &name, ..CudaOptions::default() };
        let source = gpu.source.assemble(&gpu.defines);
        let kernel = cuda_kernel(&source, &gpu.entry, threads, &options).map_err(|e| failed(e.to_string()))?;
        let version = format!("nvrtc {}.{} {}", self.version.0, self.version.1, self.architecture);
        let flags = CUDA_OPTIONS.join(" ");
        let key = [version.as_bytes(), flags.as_bytes(), kernel.text.as_bytes()];
        let cubin =
            cache::get_or_make(self.cache.as_deref(), "cubin", &key, || compile(&kernel.text, &self.architecture));
        Ok((kernel, cubin.map_err(failed)?))
    }
}

/// Compiles CUDA C++ for an architecture such as `sm_90a`.
pub(crate) fn compile(text: &str, architecture: &str) -> Result<Vec<u8>, String> {
    let source = CString::new(text).map_err(|_| "the source has a zero byte".to_owned())?;
    let architecture = format!("--gpu-architecture={architecture}");
    let options: Vec<CString> = CUDA_OPTIONS
        .iter()
        .copied()
        .chain([architecture.as_str()])
        .map(|option| CString::new(option).expect("options have no zero bytes"))
        .collect();
    let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
    let mut program = Program(std::ptr::null_mut());
    // SAFETY: strings outlive the calls that take them, buffers have the sizes that NVRTC asked for.
    unsafe {
        let none = std::ptr::null();
        let created = sys::nvrtcCreateProgram(&mut program.0, source.as_ptr(), c"kernel.cu".as_ptr(), 0, none, none);
        text_of(created, "nvrtcCreateProgram")?;
        let result = sys::nvrtcCompileProgram(program.0, options.len() as i32, options.as_ptr());
        if result != nvrtcResult::NVRTC_SUCCESS {
            let mut len = 0;
            sys::nvrtcGetProgramLogSize(program.0, &mut len);
            let mut log = vec![0u8; len];
            sys::nvrtcGetProgramLog(program.0, log.as_mut_ptr().cast());
            let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_owned();
            return Err(if log.is_empty() { format!("NVRTC failed: {result:?}") } else { log });
        }
        let mut len = 0;
        text_of(sys::nvrtcGetCUBINSize(program.0, &mut len), "nvrtcGetCUBINSize")?;
        let mut cubin = vec![0u8; len];
        text_of(sys::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast()), "nvrtcGetCUBIN")?;
        Ok(cubin)
    }
}

/// Whether NVRTC is on this machine.
#[cfg(test)]
pub(crate) fn is_present() -> bool {
    // SAFETY: loading the library runs its initialisers only.
    unsafe { sys::is_culib_present() }
}

struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program was made by NVRTC, or is null, which it refuses.
        unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
    }
}

fn text_of(result: nvrtcResult, call: &str) -> Result<(), String> {
    if result == nvrtcResult::NVRTC_SUCCESS {
        return Ok(());
    }
    // SAFETY: the string is NVRTC's own.
    let text = unsafe { CStr::from_ptr(sys::nvrtcGetErrorString(result)) };
    Err(format!("{call}: {}", text.to_string_lossy()))
}

fn check(result: nvrtcResult, call: &str) -> Result<()> {
    text_of(result, call).map_err(failed)
}
