//! The CUDA driver's calls that are used, with their errors as ours.

use std::ffi::{CStr, CString, c_int, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{self, CUresult};

use crate::device::launch::{TileMap, Tiles};
use crate::{DType, Error, Result};

pub(super) fn failed(message: impl Into<String>) -> Error {
    Error::Device { device: "cuda".into(), message: message.into() }
}

/// A result of the driver, as an error that names the call and says what may help.
fn check(result: CUresult, call: &str) -> Result<()> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = std::ptr::null();
    // SAFETY: the driver gives a string of its own, or leaves the null.
    let text = unsafe {
        sys::cuGetErrorString(result, &mut text);
        if text.is_null() { "unknown error".into() } else { CStr::from_ptr(text).to_string_lossy() }
    };
    let hint = match result {
        CUresult::CUDA_ERROR_NO_DEVICE => "; is an NVIDIA GPU visible to this process?",
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS | CUresult::CUDA_ERROR_LAUNCH_FAILED => {
            "; the device is lost to this process, start it anew"
        }
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU | CUresult::CUDA_ERROR_INVALID_PTX => {
            "; the compiler does not know this GPU, install a newer NVRTC"
        }
        _ => "",
    };
    Err(failed(format!("{call}: {text} ({result:?}){hint}")))
}

/// Whether the driver's library is on this machine.
pub(super) fn is_present() -> bool {
    // SAFETY: loading the library runs its initialisers only.
    unsafe { sys::is_culib_present() }
}

/// One GPU: its context, and the one stream that all of its work goes through, in order.
pub(super) struct Driver {
    pub(super) lane: Lane,
    /// After the stream, which needs it.
    context: Context,
    pub(super) name: String,
    /// Such as (9, 0).
    pub(super) capability: (u32, u32),
    pub(super) processors: u32,
    /// Bytes that a threadgroup can have.
    pub(super) threadgroup_memory: u32,
    pub(super) total_memory: usize,
    /// Such as 13000 for 13.0.
    pub(super) version: u32,
}

impl Driver {
    pub(super) fn open(ordinal: usize) -> Result<Driver> {
        if !is_present() {
            return Err(failed("no CUDA driver here (libcuda.so.1); install NVIDIA's, or use the cpu device"));
        }
        // SAFETY: each call writes to variables of its own types, in the order that the driver wants.
        unsafe {
            check(sys::cuInit(0), "cuInit")?;
            let (mut count, mut device, mut version) = (0, 0, 0);
            check(sys::cuDeviceGetCount(&mut count), "cuDeviceGetCount")?;
            if ordinal >= count as usize {
                return Err(failed(format!("there is no GPU {ordinal}: {count} here, numbered from 0")));
            }
            check(sys::cuDeviceGet(&mut device, ordinal as c_int), "cuDeviceGet")?;
            check(sys::cuDriverGetVersion(&mut version), "cuDriverGetVersion")?;
            let mut name = [0; 256];
            check(sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, device), "cuDeviceGetName")?;
            let attribute = |attribute| {
                let mut value = 0;
                check(sys::cuDeviceGetAttribute(&mut value, attribute, device), "cuDeviceGetAttribute")
                    .map(|()| value as u32)
            };
            use sys::CUdevice_attribute as Attribute;
            let capability = (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            );
            let name = CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned();
            if capability < (8, 0) {
                let (major, minor) = capability;
                return Err(failed(format!(
                    "{name} has compute capability {major}.{minor}; 8.0 and later are supported"
                )));
            }
            let processors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
            let threadgroup_memory = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
            let mut total_memory = 0;
            check(sys::cuDeviceTotalMem_v2(&mut total_memory, device), "cuDeviceTotalMem")?;
            let context = Context::of(device)?;
            let (lane, version) = (Lane::new()?, version as u32);
            Ok(Driver { lane, context, name, capability, processors, threadgroup_memory, total_memory, version })
        }
    }

    /// Makes the context the calling thread's.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        check(unsafe { sys::cuCtxSetCurrent(self.context.context) }, "cuCtxSetCurrent")
    }

    /// Zeroed memory, in the order of the stream.
    pub(super) fn allocate(&self, len: usize) -> Result<u64> {
        self.enter()?;
        let mut address = 0;
        // SAFETY: the address is written before it is used, and `len` bytes are ours from then on.
        unsafe {
            match sys::cuMemAllocAsync(&mut address, len, self.lane.0) {
                CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                    return Err(Error::OutOfMemory { device: "cuda".into(), wanted: len });
                }
                result => check(result, "cuMemAllocAsync")?,
            }
            check(sys::cuMemsetD8Async(address, 0, len, self.lane.0), "cuMemsetD8Async")?;
        }
        Ok(address)
    }

    /// Frees memory once all work given so far is done.
    ///
    /// # Safety
    ///
    /// The address is from `allocate`, and nothing uses it again.
    pub(super) unsafe fn free(&self, address: u64) {
        // An error here is an earlier launch's, which the next call that can report one reports.
        if self.enter().is_ok() {
            // SAFETY: the caller's promise.
            let _ = unsafe { sys::cuMemFreeAsync(address, self.lane.0) };
        }
    }

    /// Copies host bytes to the device, in the order of the stream; they may be changed on return.
    ///
    /// # Safety
    ///
    /// The device has so many bytes at the address.
    pub(super) unsafe fn upload(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.enter()?;
        // SAFETY: the caller's promise. Of pageable memory the driver makes a copy before it returns.
        check(
            unsafe { sys::cuMemcpyHtoDAsync_v2(address, bytes.as_ptr().cast(), bytes.len(), self.lane.0) },
            "cuMemcpyHtoDAsync",
        )
    }

    /// Copies device bytes to the host, once all work given so far is done.
    ///
    /// # Safety
    ///
    /// The device has so many bytes at the address.
    pub(super) unsafe fn download(&self, address: u64, out: &mut [u8]) -> Result<()> {
        self.enter()?;
        // SAFETY: the caller's promise; the stream is waited for before `out` is used.
        unsafe {
            let result = sys::cuMemcpyDtoHAsync_v2(out.as_mut_ptr().cast(), address, out.len(), self.lane.0);
            check(result, "cuMemcpyDtoHAsync")?;
        }
        self.synchronize()
    }

    /// Waits for all work given so far.
    pub(super) fn synchronize(&self) -> Result<()> {
        self.enter()?;
        // SAFETY: the stream lives as long as `self`.
        check(unsafe { sys::cuStreamSynchronize(self.lane.0) }, "cuStreamSynchronize")
    }

    /// Free bytes of the device.
    pub(super) fn free_memory(&self) -> Result<usize> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both are variables of the call's types.
        check(unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) }, "cuMemGetInfo")?;
        Ok(free)
    }

    /// Loads a cubin and finds its function.
    pub(super) fn load(self: &Arc<Self>, cubin: &[u8], symbol: &str) -> Result<Function> {
        self.enter()?;
        let symbol = CString::new(symbol).map_err(|_| failed("a kernel's name has a zero byte"))?;
        let (mut module, mut function) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the image is whole, as its seal says; the module lives as long as the function's handle.
        unsafe {
            check(sys::cuModuleLoadData(&mut module, cubin.as_ptr().cast()), "cuModuleLoadData")?;
            check(sys::cuModuleGetFunction(&mut function, module, symbol.as_ptr()), "cuModuleGetFunction")?;
        }
        Ok(Function { module, function, dynamic: Mutex::new(0), driver: self.clone() })
    }

    /// What the copy engine must know of a matrix at `address`.
    pub(super) fn tile_map(&self, address: u64, tiles: &Tiles) -> Result<[u8; size_of::<TileMap>()]> {
        self.enter()?;
        use sys::CUtensorMapDataType::{
            CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, CU_TENSOR_MAP_DATA_TYPE_UINT8,
        };
        let dtype = match tiles.dtype {
            DType::BF16 => CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            DType::F16 => CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            DType::U8 => CU_TENSOR_MAP_DATA_TYPE_UINT8,
            other => return Err(failed(format!("tiles of {other}, which no kernel asks for"))),
        };
        let swizzle = match tiles.tile_columns as usize * tiles.dtype.size() {
            128 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            _ => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
        };
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: sizes are of rank 2, strides of one less, and the map, which has the alignment of its type, is only written.
        let result = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                dtype,
                2,
                address as *mut c_void,
                [u64::from(tiles.columns), u64::from(tiles.rows)].as_ptr(),
                [tiles.stride].as_ptr(),
                [tiles.tile_columns, tiles.tile_rows].as_ptr(),
                [1, 1].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check(result, "cuTensorMapEncodeTiled")?;
        Ok(bytemuck::cast(map.opaque))
    }

    /// Gives a launch to the stream.
    ///
    /// # Safety
    ///
    /// `arguments` are the function's one parameter, whole, and the addresses in it are those of live memory that the
    /// function keeps to.
    pub(super) unsafe fn launch(
        &self,
        lane: &Lane,
        function: &Function,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        cluster: u32,
        arguments: &[u64],
    ) -> Result<()> {
        self.enter()?;
        let mut parameters = [arguments.as_ptr() as *mut c_void];
        // 48 KiB are given without asking, of which kernels declare 32 at most.
        if shared > 16 << 10 {
            use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as SIZE;
            let mut dynamic = function.dynamic.lock().unwrap_or_else(PoisonError::into_inner);
            if shared > *dynamic {
                // SAFETY: the function's module is loaded.
                let result = unsafe { sys::cuFuncSetAttribute(function.function, SIZE, shared as i32) };
                check(result, "cuFuncSetAttribute")?;
                *dynamic = shared;
            }
        }
        // A threadgroup that is alone on its processor: all of the first cache may be its memory. Measured: decode attention of wide heads
        // takes 2 to 13 % less time; where two share a processor, products of few rows would take up to 20 % more.
        if shared > self.threadgroup_memory / 2 {
            use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT as SHARE;
            // SAFETY: the function's module is loaded.
            check(unsafe { sys::cuFuncSetAttribute(function.function, SHARE, 100) }, "cuFuncSetAttribute")?;
        }
        // Threads may come up while those of the launch before still run: every kernel begins by waiting for its end, and
        // from 9.0 on that wait is an instruction.
        use sys::CUlaunchAttributeID::{
            CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION as CLUSTER,
            CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION as EARLY,
        };
        let attribute = |id, value| sys::CUlaunchAttribute { id, pad: [0; 4], value };
        let dimension = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: cluster, y: 1, z: 1 };
        let mut attributes = [
            attribute(EARLY, sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 }),
            attribute(CLUSTER, sys::CUlaunchAttributeValue { clusterDim: dimension }),
        ];
        let config = sys::CUlaunchConfig {
            gridDimX: grid[0],
            gridDimY: grid[1],
            gridDimZ: grid[2],
            blockDimX: block[0],
            blockDimY: block[1],
            blockDimZ: block[2],
            sharedMemBytes: shared,
            hStream: lane.0,
            attrs: attributes.as_mut_ptr(),
            numAttrs: match self.capability >= (9, 0) {
                true => 1 + u32::from(cluster > 1),
                false => 0,
            },
        };
        // SAFETY: the driver copies configuration and parameter before it returns; the rest is the caller's promise.
        let result =
            unsafe { sys::cuLaunchKernelEx(&config, function.function, parameters.as_mut_ptr(), std::ptr::null_mut()) };
        check(result, "cuLaunchKernelEx")
    }

    /// The launches that `f` gives to its lane, as a graph; they are not run.
    pub(super) fn capture(self: &Arc<Self>, f: impl FnOnce(&Lane) -> Result<()>) -> Result<Graph> {
        self.enter()?;
        // A stream of its own, so that what other threads launch meanwhile is not captured.
        let lane = Lane::new()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let (mut graph, mut executable) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: capture begins and ends on one stream and thread, and the graph is destroyed once it is instantiated.
        unsafe {
            check(sys::cuStreamBeginCapture_v2(lane.0, mode), "cuStreamBeginCapture")?;
            let launched = f(&lane);
            let ended = check(sys::cuStreamEndCapture(lane.0, &mut graph), "cuStreamEndCapture");
            launched?;
            ended?;
            let result = check(sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0), "cuGraphInstantiate");
            sys::cuGraphDestroy(graph);
            result?;
        }
        Ok(Graph { executable, driver: self.clone() })
    }
}

/// A stream of the driver.
pub(super) struct Lane(sys::CUstream);

// SAFETY: streams may be used from any thread that makes their context current.
unsafe impl Send for Lane {}
// SAFETY: as above.
unsafe impl Sync for Lane {}

impl Lane {
    /// A stream of the current context.
    fn new() -> Result<Lane> {
        let mut stream = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the stream is written before it is used.
        check(unsafe { sys::cuStreamCreate(&mut stream, flags) }, "cuStreamCreate")?;
        Ok(Lane(stream))
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // SAFETY: the stream is ours; the driver keeps it until its work is done.
        unsafe { sys::cuStreamDestroy_v2(self.0) };
    }
}

/// The primary context of a GPU, made the calling thread's by each call.
struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
}

// SAFETY: a context may be used from any thread that makes it current.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    fn of(device: sys::CUdevice) -> Result<Context> {
        let mut context = std::ptr::null_mut();
        // SAFETY: the context is written before it is used.
        unsafe {
            check(sys::cuDevicePrimaryCtxRetain(&mut context, device), "cuDevicePrimaryCtxRetain")?;
            let ours = Context { device, context };
            check(sys::cuCtxSetCurrent(context), "cuCtxSetCurrent")?;
            Ok(ours)
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: it was retained once for this handle, which all that uses it holds.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// A kernel that is ready to launch.
pub(super) struct Function {
    module: sys::CUmodule,
    function: sys::CUfunction,
    /// The most memory beside what it declares that a launch may ask for, which only grows: threads launch it at once.
    dynamic: Mutex<u32>,
    driver: Arc<Driver>,
}

// SAFETY: modules and functions may be used from any thread that makes their context current.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Drop for Function {
    fn drop(&mut self) {
        if self.driver.synchronize().is_ok() {
            // SAFETY: no launch of the module is under way.
            unsafe { sys::cuModuleUnload(self.module) };
        }
    }
}

/// Launches that run as one.
pub(super) struct Graph {
    executable: sys::CUgraphExec,
    driver: Arc<Driver>,
}

// SAFETY: an executable graph may be launched from any thread, one at a time: all go to one stream.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Graph {
    /// Gives the graph's launches to the stream.
    ///
    /// # Safety
    ///
    /// The memory that they were captured with is alive.
    pub(super) unsafe fn launch(&self) -> Result<()> {
        self.driver.enter()?;
        // SAFETY: the caller's promise.
        check(unsafe { sys::cuGraphLaunch(self.executable, self.driver.lane.0) }, "cuGraphLaunch")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.driver.synchronize().is_ok() {
            // SAFETY: no launch of the graph is under way.
            unsafe { sys::cuGraphExecDestroy(self.executable) };
        }
    }
}
