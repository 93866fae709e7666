//! What controllers share: caches fed by watches, a work queue, requests.
//!
//! Nothing here knows what is decided; the training operator's deciders know nothing of what is here.

pub mod backoff;
pub mod cache;
pub mod queue;
pub mod resource;
