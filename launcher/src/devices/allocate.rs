//! Which pod holds which device.

use super::Inventory;
use std::collections::BTreeMap;

/// Device uuids by container.
type ByContainer = BTreeMap<String, Vec<String>>;

#[derive(Clone, Debug, Default)]
pub struct Allocation {
    /// In the order of their index, with the uid of the pod that holds each.
    devices: Vec<(String, Option<String>)>,
    /// Held by pods that an earlier node started, but not found any more.
    missing: BTreeMap<String, String>,
}

impl Allocation {
    pub fn new(inventory: &Inventory) -> Self {
        Allocation {
            devices: inventory.gpus.iter().map(|gpu| (gpu.uuid.clone(), None)).collect(),
            missing: BTreeMap::new(),
        }
    }

    /// Gives a pod as many devices as its containers ask for: all of them, or `None` while they are not free.
    pub fn take(&mut self, pod_uid: &str, counts: &BTreeMap<String, usize>) -> Option<ByContainer> {
        let wanted: usize = counts.values().sum();
        if self.free() < wanted {
            return None;
        }
        let mut free = self.devices.iter_mut().filter(|(_, holder)| holder.is_none());
        let mut given = ByContainer::new();
        for (container, count) in counts {
            for (uuid, holder) in free.by_ref().take(*count) {
                *holder = Some(pod_uid.to_owned());
                given.entry(container.clone()).or_default().push(uuid.clone());
            }
        }
        Some(given)
    }

    /// Counts devices as held that a pod got from an earlier node.
    pub fn restore(&mut self, pod_uid: &str, devices: &ByContainer) {
        for uuid in devices.values().flatten() {
            match self.devices.iter_mut().find(|(known, _)| known == uuid) {
                Some((_, holder)) => *holder = Some(pod_uid.to_owned()),
                None => drop(self.missing.insert(uuid.clone(), pod_uid.to_owned())),
            }
        }
    }

    /// True where the pod held any.
    pub fn release(&mut self, pod_uid: &str) -> bool {
        let mut released = false;
        for (_, holder) in &mut self.devices {
            if holder.as_deref() == Some(pod_uid) {
                *holder = None;
                released = true;
            }
        }
        self.missing.retain(|_, holder| holder != pod_uid);
        released
    }

    pub fn free(&self) -> usize {
        self.devices.iter().filter(|(_, holder)| holder.is_none()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn counts(list: &[(&str, usize)]) -> BTreeMap<String, usize> {
        list.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[test]
    fn a_device_has_one_holder_also_after_a_restart() {
        let inventory = Inventory::simulated(3);
        let mut devices = Allocation::new(&inventory);
        let first = devices.take("a", &counts(&[("main", 1), ("side", 1)])).expect("free");
        assert_eq!(first["main"], ["GPU-simulated-0"]);
        assert_eq!(devices.take("b", &counts(&[("main", 2)])), None);

        let mut later = Allocation::new(&inventory);
        later.restore("a", &first);
        assert_eq!(later.free(), 1);
        assert_eq!(later.take("b", &counts(&[("main", 1)])).expect("free")["main"], ["GPU-simulated-2"]);
        assert!(later.release("a"));
        assert!(!later.release("a"));
        assert_eq!(later.free(), 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_device_is_held_twice(total in 0usize..6, steps in prop::collection::vec((0usize..5, 0usize..4), 0..40)) {
            let mut devices = Allocation::new(&Inventory::simulated(total));
            let mut held: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for (pod, count) in steps {
                let pod = format!("pod-{pod}");
                if held.remove(&pod).is_some() {
                    devices.release(&pod);
                } else if let Some(given) = devices.take(&pod, &counts(&[("main", count)])) {
                    held.insert(pod, given.into_values().flatten().collect());
                }
                let all: Vec<&String> = held.values().flatten().collect();
                prop_assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
                prop_assert_eq!(devices.free() + all.len(), total);
            }
        }
    }
}
