//! A model that comes as a TorchScript file, exported from Python and trained without it. Over `shim/script.cpp`.
//!
//! `forward(inputs)` returns scores, which are trained by cross-entropy; `forward(inputs, targets)` returns the loss
//! itself. Parameters and buffers of 32-bit floats are exchanged for the run's own tensors, so that they are reduced,
//! saved and sent as those of any model. Parameters that need no gradient, and buffers of other types, stay as the
//! file has them, in the module of each rank.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use tch::{Kind, TchError, Tensor};

use super::{ACCURACY, Batch, Initial, Layout, Measured, Model, ModelError, State, cross_entropy};
use crate::autograd::check;

unsafe extern "C" {
    fn muster_script_load(path: *const c_char, module: *mut *mut c_void) -> *mut c_char;
    fn muster_script_free(module: *mut c_void);
    fn muster_script_tensors(
        module: *mut c_void,
        buffers: c_int,
        context: *mut c_void,
        tell: unsafe extern "C" fn(*mut c_void, *const c_char, *mut c_void),
    ) -> *mut c_char;
    fn muster_script_set(module: *mut c_void, name: *const c_char, tensor: *mut c_void) -> *mut c_char;
    fn muster_script_inputs(module: *mut c_void, count: *mut usize) -> *mut c_char;
    fn muster_script_train(module: *mut c_void, on: c_int) -> *mut c_char;
    fn muster_script_forward(
        module: *mut c_void,
        inputs: *const *mut c_void,
        count: usize,
        output: *mut *mut c_void,
    ) -> *mut c_char;
}

/// A loaded module of libtorch.
#[derive(Debug)]
struct Module(*mut c_void);

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: the module that `load` has made; nobody uses it any more.
        unsafe { muster_script_free(self.0) }
    }
}

impl Module {
    fn load(path: &CStr) -> Result<Module, TchError> {
        let mut module = std::ptr::null_mut();
        // SAFETY: a text ended by a zero, and a place for a pointer, which is written only on success.
        check(unsafe { muster_script_load(path.as_ptr(), &raw mut module) })?;
        Ok(Module(module))
    }

    /// Names and tensors of the parameters, or of the buffers.
    fn tensors(&self, buffers: bool) -> Result<Vec<(String, Tensor)>, TchError> {
        unsafe extern "C" fn tell(context: *mut c_void, name: *const c_char, tensor: *mut c_void) {
            // SAFETY: the list that `tensors` has given; a text ended by a zero; a tensor that is now ours.
            unsafe {
                let list = &mut *context.cast::<Vec<(String, Tensor)>>();
                list.push((CStr::from_ptr(name).to_string_lossy().into_owned(), Tensor::from_ptr(tensor.cast())));
            }
        }
        let mut list: Vec<(String, Tensor)> = Vec::new();
        // SAFETY: `tell` is called with this list within the call only.
        check(unsafe { muster_script_tensors(self.0, buffers.into(), (&raw mut list).cast(), tell) })?;
        Ok(list)
    }

    fn set(&self, name: &str, tensor: &Tensor) -> Result<(), TchError> {
        let name = CString::new(name)?;
        // SAFETY: a text ended by a zero, and a tensor of tch, of which the module takes its own share.
        check(unsafe { muster_script_set(self.0, name.as_ptr(), tensor.as_ptr().cast_mut().cast()) })
    }

    /// How many tensors `forward` takes.
    fn inputs(&self) -> Result<usize, TchError> {
        let mut count = 0;
        // SAFETY: a place for a number.
        check(unsafe { muster_script_inputs(self.0, &raw mut count) })?;
        Ok(count)
    }

    fn train(&self, on: bool) -> Result<(), TchError> {
        // SAFETY: a module that is loaded.
        check(unsafe { muster_script_train(self.0, on.into()) })
    }

    fn forward(&self, inputs: &[&Tensor]) -> Result<Tensor, TchError> {
        let inputs: Vec<*mut c_void> = inputs.iter().map(|input| input.as_ptr().cast_mut().cast()).collect();
        let mut output = std::ptr::null_mut();
        // SAFETY: as many tensors of tch as are said, and a place for one, which is ours on success.
        unsafe {
            check(muster_script_forward(self.0, inputs.as_ptr(), inputs.len(), &raw mut output))?;
            Ok(Tensor::from_ptr(output.cast()))
        }
    }
}

#[derive(Debug)]
pub(super) struct Script {
    module: Module,
    path: PathBuf,
    layout: Layout,
    /// Names in the module, with the number of the parameter that takes the place; a tied one has several.
    parameters: Vec<(String, usize)>,
    buffers: Vec<(String, usize)>,
    /// Whether `forward` takes the targets and returns the loss.
    gives_loss: bool,
    /// As the module was last told; None before.
    training: Cell<Option<bool>>,
}

impl Script {
    pub(super) fn load(path: &Path) -> Result<Script, ModelError> {
        let wrong = |why: &str| ModelError::Script { path: path.into(), why: why.into() };
        std::fs::File::open(path).map_err(|source| ModelError::Read { path: path.into(), source })?;
        let text = path.to_str().and_then(|path| CString::new(path).ok()).ok_or_else(|| wrong("its name is no text"))?;
        let module = Module::load(&text).map_err(|error| {
            let reason = error.to_string();
            let reason = reason.lines().next().unwrap_or_default();
            wrong(&format!("it is no TorchScript file ({reason}): write it with torch.jit.script(model).save(FILE)"))
        })?;
        let gives_loss = match module.inputs().map_err(|error| wrong(&error.to_string()))? {
            1 => false,
            2 => true,
            count => {
                let why = format!("forward takes {count} arguments: let it take (inputs) or (inputs, targets)");
                return Err(wrong(&why));
            }
        };

        let mut layout = Layout::default();
        let mut parameters = Vec::new();
        // By its place in memory, the parameter that a tensor is: a tied one comes once for each place in the module.
        let mut known: HashMap<(usize, Vec<i64>), super::ParameterId> = HashMap::new();
        for (name, tensor) in module.tensors(false)? {
            if !tensor.requires_grad() {
                continue;
            }
            if tensor.kind() != Kind::Float {
                let kind = tensor.kind();
                return Err(wrong(&format!("its parameter {name} is {kind:?}: export the model after model.float()")));
            }
            let key = (tensor.data_ptr() as usize, tensor.size());
            let id = match known.get(&key) {
                Some(id) => {
                    layout.alias(*id, name.as_str());
                    *id
                }
                None => {
                    let initial = Initial::Values(tensor.detach().copy());
                    let id = layout.parameter(name.as_str(), &tensor.size(), initial);
                    known.insert(key, id);
                    id
                }
            };
            parameters.push((name, id.0));
        }
        if parameters.is_empty() {
            return Err(wrong("it has no parameters that need gradients: export it in training mode, not frozen"));
        }
        let mut buffers = Vec::new();
        for (name, tensor) in module.tensors(true)? {
            if tensor.kind() == Kind::Float {
                let id = layout.buffer(name.as_str(), &tensor.size(), Initial::Values(tensor.copy()));
                buffers.push((name, id.0));
            }
        }
        let path = path.into();
        Ok(Script { module, path, layout, parameters, buffers, gives_loss, training: Cell::new(None) })
    }

    fn forward(&self, state: &State<'_>, inputs: &[&Tensor]) -> Result<Tensor, ModelError> {
        let run = || {
            if self.training.replace(Some(state.training)) != Some(state.training) {
                self.module.train(state.training)?;
            }
            self.module.forward(inputs)
        };
        run().map_err(|error| ModelError::Script { path: self.path.clone(), why: error.to_string() })
    }
}

impl Model for Script {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn bind(&mut self, state: &State<'_>) -> Result<(), ModelError> {
        for (name, index) in &self.parameters {
            self.module.set(name, &state.parameters[*index])?;
        }
        for (name, index) in &self.buffers {
            self.module.set(name, &state.buffers[*index])?;
        }
        self.layout.forget_values();
        Ok(())
    }

    fn loss(&self, state: &State<'_>, batch: &Batch) -> Result<Tensor, ModelError> {
        if self.gives_loss {
            return self.forward(state, &[&batch.inputs, &batch.targets]);
        }
        cross_entropy(&self.forward(state, &[&batch.inputs])?, &batch.targets)
    }

    fn metrics(&self) -> &'static [&'static str] {
        if self.gives_loss { &[] } else { ACCURACY }
    }

    fn measure(&self, state: &State<'_>, batch: &Batch) -> Result<Measured, ModelError> {
        if self.gives_loss {
            let items = batch.targets.numel() as i64;
            let loss = self.loss(state, batch)?.f_double_value(&[])?;
            return Ok(Measured { items, loss: loss * items as f64, metrics: Vec::new() });
        }
        Measured::of_scores(&self.forward(state, &[&batch.inputs])?, &batch.targets)
    }
}
