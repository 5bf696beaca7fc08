//! An ordered sequence of launches on a device.

use std::sync::Arc;

use super::arena::Arena;
use super::hazard::Hazards;
use super::launch::{Body, Gpu, Launch};
use super::plan::Plan;
use super::{Device, Queue, byte_len, cpu};
use crate::{DType, Element, Error, Result, Shape, Tensor};

/// Takes launches, orders those that depend on one another, and runs them.
///
/// Ops take a stream as their first argument. Results are as if launches ran one after the other.
pub struct Stream {
    device: Device,
    queue: Box<dyn Queue>,
    hazards: Hazards,
    arena: Arc<Arena>,
    recording: Option<Vec<Launch>>,
}

impl Stream {
    pub(super) fn new(device: Device, queue: Box<dyn Queue>) -> Stream {
        Stream { device, queue, hazards: Hazards::default(), arena: Arc::default(), recording: None }
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// A row-major tensor for a result, with whatever contents its memory had. Once its last view is dropped, the
    /// stream uses the memory again.
    pub fn empty(&mut self, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        let buffer = self.arena.take(&self.device, byte_len("empty", dtype, &shape)?)?;
        Tensor::new(buffer, 0, dtype, shape)
    }

    /// Runs a launch, or notes it while recording. The stream takes the form that its device needs.
    pub(crate) fn launch(&mut self, mut launch: Launch, cpu: cpu::Entry, gpu: impl FnOnce() -> Gpu) -> Result<()> {
        launch.check(&self.device)?;
        if self.device.as_cpu().is_some() {
            if launch.choice.kernel.is_empty() {
                launch.choice.kernel = "cpu".into();
            }
            launch.body = Body::Cpu(cpu);
        } else {
            let gpu = gpu();
            if launch.choice.kernel.is_empty() {
                launch.choice.kernel = gpu.entry.clone().into();
            }
            launch.body = Body::Gpu(gpu);
        }
        if let Some(recording) = &mut self.recording {
            recording.push(launch);
            return Ok(());
        }
        if self.hazards.note(&launch.args) {
            self.queue.barrier()?;
        }
        self.queue.launch(&launch)
    }

    /// Calls `f` and keeps its launches, without running them, as a [`Plan`].
    ///
    /// # Errors
    ///
    /// What `f` returns; [`Error::Argument`] where a recording is already under way.
    pub fn record<R, E: From<Error>>(&mut self, f: impl FnOnce(&mut Stream) -> Result<R, E>) -> Result<(Plan, R), E> {
        if self.recording.is_some() {
            return Err(Error::argument("record", "a recording is already under way on this stream").into());
        }
        // Temporaries of the plan must not be handed to anything outside it.
        let outer = std::mem::take(&mut self.arena);
        self.recording = Some(Vec::new());
        let result = f(self);
        let launches = self.recording.take().unwrap_or_default();
        let arena = std::mem::replace(&mut self.arena, outer);
        Ok((Plan::new(launches, arena), result?))
    }

    /// Runs a plan's launches.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] while recording, or where the plan is another device's; [`Error::Kernel`] where a kernel breaks a
    /// rule.
    pub fn replay(&mut self, plan: &Plan) -> Result<()> {
        self.refuse_while_recording("replay")?;
        if let Some(other) = plan.device().filter(|&device| *device != self.device) {
            let message = format!("the plan is for another device ({other:?}) than the stream's ({:?})", self.device);
            return Err(Error::argument("replay", message));
        }
        self.hazards.clear();
        self.queue.barrier()?;
        self.queue.replay(plan)?;
        // The next launch outside the plan waits for all of it.
        self.queue.barrier()
    }

    /// Returns when everything launched is done.
    pub fn synchronize(&mut self) -> Result<()> {
        self.hazards.clear();
        self.queue.finish()
    }

    /// Copies a tensor's elements out in row-major order, once the work that writes them is done.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] where `out` has another length or element type.
    pub fn read<T: Element>(&mut self, tensor: &Tensor, out: &mut [T]) -> Result<()> {
        self.check_host_copy("read", tensor, T::DTYPE, out.len())?;
        self.synchronize()?;
        if out.is_empty() {
            return Ok(());
        }
        let range = tensor.byte_range();
        tensor.buffer().storage().read(range.clone(), |bytes| {
            let mut next = 0;
            for_each_run(tensor, |run| {
                let run = &bytes[run.start - range.start..run.end - range.start];
                bytemuck::cast_slice_mut(out)[next..next + run.len()].copy_from_slice(run);
                next += run.len();
            });
        })
    }

    /// Replaces a tensor's elements, in row-major order, once the work that uses them is done.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] where `elements` has another length or type, or the memory is read-only.
    pub fn write<T: Element>(&mut self, tensor: &Tensor, elements: &[T]) -> Result<()> {
        self.check_host_copy("write", tensor, T::DTYPE, elements.len())?;
        if tensor.buffer().storage().read_only {
            return Err(Error::argument("write", "the tensor's memory is read-only (a mapped file)"));
        }
        let (storage, mut next) = (tensor.buffer().storage(), 0);
        if self.device.0.shares_memory() {
            self.synchronize()?;
        }
        let mut result = Ok(());
        for_each_run(tensor, |run| {
            let bytes = &bytemuck::cast_slice(elements)[next..next + run.len()];
            next += run.len();
            if result.is_ok() {
                result = storage.write(run.start, bytes);
            }
        });
        result
    }

    /// Frees the memory of temporaries that nothing uses now.
    pub fn trim(&mut self) {
        self.arena.trim();
    }

    fn check_host_copy(&self, op: &'static str, tensor: &Tensor, dtype: DType, len: usize) -> Result<()> {
        self.refuse_while_recording(op)?;
        if *tensor.device() != self.device {
            return Err(Error::argument(op, format!("{tensor:?} is on another device")));
        }
        let same = tensor.dtype() == dtype || (tensor.dtype() == DType::Bool && dtype == DType::U8);
        if !same || tensor.elements() != len {
            return Err(Error::argument(op, format!("got {len} elements of {dtype}, wanted those of {tensor:?}")));
        }
        Ok(())
    }

    fn refuse_while_recording(&self, op: &'static str) -> Result<()> {
        match self.recording {
            Some(_) => Err(Error::argument(op, "not while recording: a plan holds launches only")),
            None => Ok(()),
        }
    }
}

/// Calls `f` with the range of bytes of each contiguous run of a view, in row-major order.
fn for_each_run(tensor: &Tensor, mut f: impl FnMut(std::ops::Range<usize>)) {
    let size = tensor.dtype().size();
    if tensor.elements() == 0 {
        return;
    }
    if tensor.is_contiguous() {
        return f(tensor.byte_range());
    }
    let (shape, strides) = (tensor.shape(), tensor.strides());
    let mut index = [0usize; crate::MAX_RANK];
    loop {
        let element: usize = index.iter().zip(strides.iter()).map(|(i, s)| i * s).sum();
        let start = tensor.offset() + element * size;
        f(start..start + size);
        let Some(axis) = (0..shape.rank()).rev().find(|&a| index[a] + 1 < shape[a]) else { return };
        index[axis] += 1;
        index[axis + 1..].fill(0);
    }
}
