//! The backend of tests and simulations: keeps nothing beyond the store's own memory.

use super::backend::{Backend, BackendError, Row};

#[derive(Debug, Default)]
pub struct Memory;

impl Backend for Memory {
    fn load(&mut self, _visit: &mut dyn FnMut(Row)) -> Result<u64, BackendError> {
        Ok(0)
    }

    fn commit(&mut self, _rows: &[Row]) -> Result<(), BackendError> {
        Ok(())
    }

    fn compact(&mut self, _floor: u64, _superseded: &[u64]) -> Result<(), BackendError> {
        Ok(())
    }

    fn inline(&self) -> bool {
        true
    }
}
