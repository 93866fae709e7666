//! Kubernetes quantities (`500m`, `2Gi`, `1e3`) as the whole numbers that scheduling counts with.

use muster_api::quantity::Quantity;

/// The amount of `resource` that `quantity` names: thousandths for `cpu`, whole units for everything else, rounded
/// up as the scheduler of Kubernetes does. `None` where the text is no quantity.
pub(crate) fn amount(resource: &str, quantity: &str) -> Option<i64> {
    let quantity: Quantity = quantity.parse().ok()?;
    Some(if resource == "cpu" { quantity.milli() } else { quantity.units() })
}

/// How a number of `amount` reads best: `250m` or `2` for cpu, `512Mi` for byte counts, the plain number otherwise.
pub(crate) fn render(resource: &str, value: i64) -> String {
    if resource == "cpu" {
        return if value % 1000 == 0 { (value / 1000).to_string() } else { format!("{value}m") };
    }
    let bytes = resource == "memory" || resource == "ephemeral-storage" || resource.starts_with("hugepages-");
    if bytes {
        for (suffix, shift) in [("Gi", 30), ("Mi", 20), ("Ki", 10)] {
            let unit = 1i64 << shift;
            if value.abs() >= unit && value % unit == 0 {
                return format!("{}{suffix}", value / unit);
            }
        }
        if value.abs() >= 1 << 20 {
            return format!("{}Mi", value.div_euclid(1 << 20) + 1);
        }
    }
    value.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_become_whole_numbers() {
        for (resource, text, want) in [
            ("cpu", "1", Some(1000)),
            ("cpu", "250m", Some(250)),
            ("cpu", "0.5", Some(500)),
            ("memory", "1.5Gi", Some(3 << 29)),
            ("memory", "100m", Some(1)),
            ("nvidia.com/gpu", "8", Some(8)),
            ("cpu", "1x", None),
        ] {
            assert_eq!(amount(resource, text), want, "{resource} {text}");
        }
    }

    #[test]
    fn amounts_read_as_people_write_them() {
        for (resource, value, want) in [
            ("cpu", 2000, "2"),
            ("cpu", 1500, "1500m"),
            ("memory", 1 << 30, "1Gi"),
            ("memory", 512 << 20, "512Mi"),
            ("memory", 1000, "1000"),
            ("nvidia.com/gpu", 3, "3"),
        ] {
            assert_eq!(render(resource, value), want);
        }
    }
}
