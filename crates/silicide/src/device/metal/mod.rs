//! The Metal executor: objc2 calls, and nothing that the emulated device could share.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use objc2::rc::{Retained, autoreleasepool};
use objc2::runtime::ProtocolObject;
use objc2_foundation::NSString;
use objc2_metal::{
    MTLBarrierScope, MTLBuffer, MTLCommandBuffer, MTLCommandBufferStatus, MTLCommandEncoder, MTLCommandQueue,
    MTLCompileOptions, MTLComputeCommandEncoder, MTLComputePipelineState, MTLCreateSystemDefaultDevice, MTLDevice,
    MTLDispatchType, MTLLibrary, MTLMathMode, MTLResourceOptions, MTLSize,
};

use super::buffer::Memory;
use super::launch::{Body, Gpu, Launch};
use super::{DeviceKind, Executor, HostBytes, Queue};
use crate::{Error, Result};

type Object<P> = Retained<ProtocolObject<P>>;

pub(super) struct Metal {
    shared: Arc<Shared>,
}

struct Shared {
    device: Object<dyn MTLDevice>,
    /// One queue for all streams: waiting for its last command buffer waits for everything.
    queue: Object<dyn MTLCommandQueue>,
    /// By what was put before the source, and the source's name.
    libraries: Mutex<HashMap<(&'static str, String), Object<dyn MTLLibrary>>>,
    pipelines: Mutex<HashMap<(String, String), Object<dyn MTLComputePipelineState>>>,
}

// SAFETY: Metal's devices, queues, libraries and pipeline states may be used from any thread.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// What keeps a buffer's memory: the Metal object.
struct Owner(Object<dyn MTLBuffer>);

// SAFETY: Metal's buffers may be used from any thread; access to their contents is the lock's business.
unsafe impl Send for Owner {}
// SAFETY: as above.
unsafe impl Sync for Owner {}

fn failed(message: impl Into<String>) -> Error {
    Error::Device { device: "metal".into(), message: message.into() }
}

impl Metal {
    pub(super) fn new() -> Result<Metal> {
        let device = MTLCreateSystemDefaultDevice()
            .ok_or_else(|| failed("no Metal device; is this a virtual machine without a GPU?"))?;
        let queue = device.newCommandQueue().ok_or_else(|| failed("cannot make a command queue"))?;
        Ok(Metal {
            shared: Arc::new(Shared { device, queue, libraries: Mutex::default(), pipelines: Mutex::default() }),
        })
    }
}

impl Executor for Metal {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Metal
    }

    fn description(&self) -> String {
        let device = &self.shared.device;
        let limit = device.recommendedMaxWorkingSetSize() >> 20;
        format!("{}, working set up to {limit} MiB", device.name())
    }

    fn allocate(&self, len: usize) -> Result<Memory> {
        let buffer = self
            .shared
            .device
            .newBufferWithLength_options(len.max(1), MTLResourceOptions::StorageModeShared)
            .ok_or_else(|| Error::OutOfMemory { device: "metal".into(), wanted: len })?;
        let ptr = buffer.contents().cast();
        Ok(Memory { ptr, len, owner: Box::new(Owner(buffer)) })
    }

    fn adopt(&self, bytes: &Arc<dyn HostBytes>) -> Result<Option<Memory>> {
        // Metal shares whole pages only. A mapping starts on a page; its last page is ours to its end.
        const PAGE: usize = 16384;
        let slice = bytes.as_ref().as_ref();
        if slice.is_empty() || !(slice.as_ptr() as usize).is_multiple_of(PAGE) {
            return Ok(None);
        }
        // SAFETY: the pages stay mapped while `bytes` is held, which the Memory's owner does beside the buffer; kernels
        // never write them, since the storage is read-only.
        let buffer = unsafe {
            self.shared.device.newBufferWithBytesNoCopy_length_options_deallocator(
                NonNull::from(slice).cast::<c_void>(),
                slice.len().next_multiple_of(PAGE),
                MTLResourceOptions::StorageModeShared,
                None,
            )
        };
        let Some(buffer) = buffer else { return Ok(None) };
        let ptr = NonNull::from(slice).cast();
        Ok(Some(Memory { ptr, len: slice.len(), owner: Box::new((Owner(buffer), bytes.clone())) }))
    }

    fn queue(&self) -> Box<dyn Queue> {
        Box::new(MetalQueue { shared: self.shared.clone(), open: None, last: None })
    }
}

impl Shared {
    fn pipeline(&self, gpu: &Gpu) -> Result<Object<dyn MTLComputePipelineState>> {
        let mut pipelines = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (gpu.entry.clone(), gpu.defines.clone());
        if let Some(pipeline) = pipelines.get(&key) {
            return Ok(pipeline.clone());
        }
        let kernel = |message: String| Error::Kernel { kernel: gpu.entry.clone(), message };
        let library = self.library(gpu)?;
        let function = library
            .newFunctionWithName(&NSString::from_str(&gpu.entry))
            .ok_or_else(|| kernel(format!("{} has no such entry point", gpu.source.name)))?;
        let pipeline = self
            .device
            .newComputePipelineStateWithFunction_error(&function)
            .map_err(|e| kernel(e.localizedDescription().to_string()))?;
        pipelines.insert(key, pipeline.clone());
        Ok(pipeline)
    }

    fn library(&self, gpu: &Gpu) -> Result<Object<dyn MTLLibrary>> {
        let mut libraries = self.libraries.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (gpu.source.name, gpu.defines.clone());
        if let Some(library) = libraries.get(&key) {
            return Ok(library.clone());
        }
        let options = MTLCompileOptions::new();
        // Masks and NaN checks rely on infinities meaning what they mean.
        options.setMathMode(MTLMathMode::Safe);
        let library = self
            .device
            .newLibraryWithSource_options_error(&NSString::from_str(&gpu.source.assemble(&gpu.defines)), Some(&options))
            .map_err(|e| Error::Kernel {
                kernel: gpu.source.name.into(),
                message: e.localizedDescription().to_string(),
            })?;
        libraries.insert(key, library.clone());
        Ok(library)
    }
}

struct MetalQueue {
    shared: Arc<Shared>,
    /// The command buffer being filled, and its one concurrent encoder.
    open: Option<(Object<dyn MTLCommandBuffer>, Object<dyn MTLComputeCommandEncoder>)>,
    last: Option<Object<dyn MTLCommandBuffer>>,
}

// SAFETY: an encoder is used by one thread at a time, which `&mut self` ensures.
unsafe impl Send for MetalQueue {}

impl MetalQueue {
    fn encoder(&mut self) -> Result<&ProtocolObject<dyn MTLComputeCommandEncoder>> {
        if self.open.is_none() {
            let commands = self.shared.queue.commandBuffer().ok_or_else(|| failed("cannot make a command buffer"))?;
            let encoder = commands
                .computeCommandEncoderWithDispatchType(MTLDispatchType::Concurrent)
                .ok_or_else(|| failed("cannot make a command encoder"))?;
            self.open = Some((commands, encoder));
        }
        let (_, encoder) = self.open.as_ref().expect("opened above");
        Ok(encoder)
    }
}

impl Queue for MetalQueue {
    fn launch(&mut self, launch: &Launch) -> Result<()> {
        let Body::Gpu(gpu) = &launch.body else { unreachable!("the stream gives a GPU queue GPU launches") };
        let pipeline = self.shared.pipeline(gpu)?;
        let encoder = self.encoder()?;
        encoder.setComputePipelineState(&pipeline);
        for (index, arg) in launch.args.iter().enumerate() {
            let owner = &arg.storage.memory.owner;
            let buffer = owner
                .downcast_ref::<Owner>()
                .or_else(|| owner.downcast_ref::<(Owner, Arc<dyn HostBytes>)>().map(|(o, _)| o))
                .expect("this device's memory is its own buffers");
            // SAFETY: the range was checked against the buffer when the tensor was made.
            unsafe { encoder.setBuffer_offset_atIndex(Some(&buffer.0), arg.bytes.start, index) };
        }
        let params = NonNull::from(&launch.params[..]).cast();
        // SAFETY: Metal copies the bytes before this returns; they are fewer than 4 KiB.
        unsafe { encoder.setBytes_length_atIndex(params, launch.params.len(), launch.args.len()) };
        let size = |[width, height, depth]: [u32; 3]| MTLSize {
            width: width as usize,
            height: height as usize,
            depth: depth as usize,
        };
        encoder.dispatchThreadgroups_threadsPerThreadgroup(size(gpu.threadgroups), size(gpu.threads));
        Ok(())
    }

    fn barrier(&mut self) -> Result<()> {
        if let Some((_, encoder)) = &self.open {
            encoder.memoryBarrierWithScope(MTLBarrierScope::Buffers);
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        autoreleasepool(|_| {
            if let Some((commands, encoder)) = self.open.take() {
                encoder.endEncoding();
                commands.commit();
                self.last = Some(commands);
            }
            let Some(last) = self.last.take() else { return Ok(()) };
            last.waitUntilCompleted();
            match last.status() {
                MTLCommandBufferStatus::Completed => Ok(()),
                _ => Err(failed(match last.error() {
                    Some(e) => e.localizedDescription().to_string(),
                    None => "the command buffer did not complete".into(),
                })),
            }
        })
    }
}

impl Drop for MetalQueue {
    fn drop(&mut self) {
        // An encoder must be ended before it is released.
        if let Some((_, encoder)) = &self.open {
            encoder.endEncoding();
        }
    }
}
