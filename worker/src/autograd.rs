//! What a backward pass does beside computing: gradients move into their places as they become complete, and whoever
//! waits for them hears of it while the rest of the pass still runs. And autocast on CPUs. Over `shim/autograd.cpp`.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use tch::{TchError, Tensor};

unsafe extern "C" {
    fn muster_place_gradient(
        leaf: *mut c_void,
        target: *mut c_void,
        index: usize,
        mode: *const AtomicU8,
        ready: unsafe extern "C" fn(*mut c_void, usize),
        context: *mut c_void,
    ) -> *mut c_char;
    fn muster_forget_gradient(leaf: *mut c_void) -> *mut c_char;
    fn muster_autocast(kind: c_int) -> *mut c_char;
}

/// Turns what the shim says into a result.
pub(crate) fn check(told: *mut c_char) -> Result<(), TchError> {
    if told.is_null() {
        return Ok(());
    }
    // SAFETY: a text that the shim has made with malloc, ended by a zero, and has forgotten.
    let text = unsafe {
        let text = CStr::from_ptr(told).to_string_lossy().into_owned();
        libc::free(told.cast());
        text
    };
    Err(TchError::Torch(text))
}

/// How gradients get into their places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// Over what is there.
    Over,
    /// Added to it, in passes after the first of an accumulated step.
    Added,
}

type Listener<'a> = &'a mut (dyn FnMut(usize) + Send);

/// What hooks are given; at one address as long as they exist.
struct Shared {
    mode: AtomicU8,
    /// By leaf, whether its gradient has come in this pass.
    come: Vec<AtomicBool>,
    /// Whom the pass that runs tells; its lifetime is that of the pass.
    listener: Mutex<Option<Listener<'static>>>,
}

/// The hooks of all leaves of a model.
pub struct Hooks {
    leaves: Vec<Tensor>,
    shared: Box<Shared>,
}

impl Hooks {
    /// From now on the gradient of `leaves[i]` goes to `targets[i]`, of the same shape, and the leaf itself has none
    /// after a pass.
    pub fn install(leaves: &[Tensor], targets: &[Tensor]) -> Result<Hooks, TchError> {
        assert_eq!(leaves.len(), targets.len(), "a place for each leaf");
        let come = leaves.iter().map(|_| AtomicBool::new(false)).collect();
        let shared = Box::new(Shared { mode: AtomicU8::new(0), come, listener: Mutex::new(None) });
        let hooks = Hooks { leaves: leaves.iter().map(Tensor::shallow_clone).collect(), shared };
        hooks.place(targets)?;
        Ok(hooks)
    }

    /// Gives the gradients other places.
    pub fn place(&self, targets: &[Tensor]) -> Result<(), TchError> {
        let context = (&raw const *self.shared).cast_mut().cast::<c_void>();
        for (index, (leaf, target)) in self.leaves.iter().zip(targets).enumerate() {
            assert_eq!(leaf.size(), target.size(), "a place has the shape of its leaf");
            // SAFETY: both are tensors of tch, whose pointers are to a tensor of libtorch each, which takes its own
            // share of them. The context outlives the hook: `drop` takes the hooks away first.
            let told = unsafe {
                muster_place_gradient(
                    leaf.as_ptr().cast_mut().cast(),
                    target.as_ptr().cast_mut().cast(),
                    index,
                    &raw const self.shared.mode,
                    ready,
                    context,
                )
            };
            check(told)?;
        }
        Ok(())
    }

    /// Goes back from `loss`, and calls `listener` with the number of each leaf whose gradient is in its place, on the
    /// thread where that happened, one call at a time. Leaves that the loss does not depend on are not called.
    pub fn backward(
        &mut self,
        loss: &Tensor,
        store: Store,
        listener: &mut (dyn FnMut(usize) + Send),
    ) -> Result<(), TchError> {
        self.shared.mode.store((store == Store::Added).into(), Ordering::Release);
        self.shared.come.iter().for_each(|come| come.store(false, Ordering::Relaxed));
        // SAFETY: only the lifetime changes; it is taken out again before this function returns, also by a panic, and
        // hooks run within `f_backward` only.
        let listener: Listener<'static> = unsafe { std::mem::transmute::<Listener<'_>, Listener<'static>>(listener) };
        *self.shared.lock() = Some(listener);
        let _silence = Silence(&self.shared);
        loss.f_backward()
    }

    /// Whether a leaf's gradient has come in the last pass.
    pub fn has_come(&self, leaf: usize) -> bool {
        self.shared.come[leaf].load(Ordering::Acquire)
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        for leaf in &self.leaves {
            // SAFETY: a tensor of tch, as above. It fails only where memory is out, and then a hook would stay.
            check(unsafe { muster_forget_gradient(leaf.as_ptr().cast_mut().cast()) }).expect("hooks are taken away");
        }
    }
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hooks({} leaves)", self.leaves.len())
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Listener<'static>>> {
        self.listener.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Takes the listener away at the end of a pass.
struct Silence<'a>(&'a Shared);

impl Drop for Silence<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

unsafe extern "C" fn ready(context: *mut c_void, index: usize) {
    // SAFETY: the context that `place` has given, which outlives the hooks.
    let shared = unsafe { &*context.cast::<Shared>() };
    shared.come[index].store(true, Ordering::Release);
    if let Some(listener) = shared.lock().as_mut() {
        listener(index);
    }
}

/// The narrower type that suitable operations compute in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Autocast {
    Bf16,
    Fp16,
}

/// Runs a forward pass under autocast on CPUs, if any.
pub fn autocast<T>(kind: Option<Autocast>, forward: impl FnOnce() -> T) -> Result<T, TchError> {
    struct Off;
    impl Drop for Off {
        fn drop(&mut self) {
            // SAFETY: the call changes a setting of this thread.
            let _ = check(unsafe { muster_autocast(-1) });
        }
    }
    let Some(kind) = kind else { return Ok(forward()) };
    // SAFETY: as above.
    check(unsafe { muster_autocast((kind == Autocast::Fp16).into()) })?;
    let _off = Off;
    Ok(forward())
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    const OPTIONS: (Kind, Device) = (Kind::Float, Device::Cpu);

    fn leaves() -> Vec<Tensor> {
        (1..=3).map(|value| Tensor::full([2], value, OPTIONS).set_requires_grad(true)).collect()
    }

    #[test]
    fn gradients_come_to_their_places_in_reverse_order_of_use() {
        let leaves = leaves();
        let flat = Tensor::zeros([6], OPTIONS);
        let targets: Vec<Tensor> = (0..3).map(|index| flat.narrow(0, index * 2, 2)).collect();
        let mut hooks = Hooks::install(&leaves, &targets).unwrap();
        for (store, expected) in [(Store::Over, 1.0), (Store::Over, 1.0), (Store::Added, 2.0)] {
            let loss = (((&leaves[0] * 2.0) * &leaves[1]).exp() * &leaves[2]).sum(Kind::Float);
            let mut order = Vec::new();
            hooks.backward(&loss, store, &mut |leaf| order.push(leaf)).unwrap();
            assert_eq!(order, [2, 1, 0]);
            let value = f64::try_from(flat.get(5)).unwrap();
            assert!((value - expected * 4f64.exp()).abs() < 1e-3, "{value}");
            assert!(leaves.iter().all(|leaf| !leaf.grad().defined()));
        }
    }

    #[test]
    fn a_leaf_that_is_not_used_does_not_come_and_one_used_twice_comes_once() {
        let leaves = leaves();
        let flat = Tensor::zeros([6], OPTIONS);
        let targets: Vec<Tensor> = (0..3).map(|index| flat.narrow(0, index * 2, 2)).collect();
        let mut hooks = Hooks::install(&leaves, &targets).unwrap();
        let loss = (&leaves[0] * &leaves[0] + &leaves[2]).sum(Kind::Float);
        let mut count = [0; 3];
        hooks.backward(&loss, Store::Over, &mut |leaf| count[leaf] += 1).unwrap();
        assert_eq!(count, [1, 0, 1]);
        assert!(hooks.has_come(0) && !hooks.has_come(1) && hooks.has_come(2));
        assert_eq!(Vec::<f32>::try_from(&flat).unwrap(), [2.0, 2.0, 0.0, 0.0, 1.0, 1.0]);
    }

    #[test]
    fn without_hooks_leaves_have_their_gradients_again() {
        let leaves = leaves();
        let targets: Vec<Tensor> = leaves.iter().map(Tensor::zeros_like).collect();
        drop(Hooks::install(&leaves, &targets).unwrap());
        leaves[0].sum(Kind::Float).backward();
        assert!(leaves[0].grad().defined());
    }

    #[test]
    fn autocast_computes_in_the_narrower_type_and_ends() {
        let matrix = Tensor::ones([4, 4], OPTIONS);
        let product = |kind| autocast(kind, || matrix.matmul(&matrix)).unwrap().kind();
        assert_eq!(product(Some(Autocast::Bf16)), Kind::BFloat16);
        assert_eq!(product(Some(Autocast::Fp16)), Kind::Half);
        assert_eq!(product(None), Kind::Float);
    }
}
