//! What a service says about traffic from outside: load balancers, external addresses, address families.

use super::names;
use super::value::{field, int, items, text};
use muster_api::field::FieldError;
use serde_json::Value;
use std::net::IpAddr;

const FAMILY_POLICIES: [&str; 3] = ["PreferDualStack", "RequireDualStack", "SingleStack"];
/// In the order in which Kubernetes lists them.
const DISTRIBUTIONS: [&str; 3] = ["PreferClose", "PreferSameZone", "PreferSameNode"];

pub(super) fn validate(spec: &Value, errors: &mut Vec<FieldError>) {
    let kind = field(spec, "type");
    let balanced = kind == "LoadBalancer";
    let external = items(spec, "externalIPs");
    for (i, address) in external.iter().enumerate() {
        let text = address.as_str().unwrap_or_default();
        let Ok(ip) = text.parse::<IpAddr>() else { continue };
        if let Some(why) = special(ip) {
            errors.push(FieldError::invalid(format!("spec.externalIPs[{i}]"), address, why));
        }
    }
    if spec.get("loadBalancerSourceRanges").is_some() {
        let path = "spec.LoadBalancerSourceRanges";
        if !balanced {
            errors.push(FieldError::forbidden(path, "may only be used when `type` is 'LoadBalancer'"));
        }
        for (i, range) in items(spec, "loadBalancerSourceRanges").iter().enumerate() {
            if !is_range(range.as_str().unwrap_or_default().trim()) {
                let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
                errors.push(FieldError::invalid(format!("{path}[{i}]"), range, why));
            }
        }
    }
    if spec.get("allocateLoadBalancerNodePorts").is_some() && !balanced {
        let why = "may only be used when `type` is 'LoadBalancer'";
        errors.push(FieldError::forbidden("spec.allocateLoadBalancerNodePorts", why));
    }
    if let Some(class) = spec.get("loadBalancerClass") {
        let path = "spec.loadBalancerClass";
        if !balanced {
            errors.push(FieldError::forbidden(path, "may only be used when `type` is 'LoadBalancer'"));
        }
        let wrong = names::qualified(class.as_str().unwrap_or_default());
        errors.extend(wrong.into_iter().map(|why| FieldError::invalid(path, class, why)));
    }
    let reachable = balanced || kind == "NodePort" || kind == "ClusterIP" && !external.is_empty();
    if let Some(policy) = spec.get("externalTrafficPolicy")
        && !reachable
    {
        let why = "may only be set for externally-accessible services";
        errors.push(FieldError::invalid("spec.externalTrafficPolicy", policy, why));
    }
    let local = balanced && field(spec, "externalTrafficPolicy") == "Local";
    if let Some(port) = int(spec, "/healthCheckNodePort").filter(|port| *port != 0 && !local) {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(FieldError::invalid("spec.healthCheckNodePort", &port.into(), why));
    }
    if let Some(distribution) = spec.get("trafficDistribution") {
        if !DISTRIBUTIONS.contains(&distribution.as_str().unwrap_or_default()) {
            errors.push(FieldError::not_supported("spec.trafficDistribution", distribution, &DISTRIBUTIONS));
        }
    }
    for (i, port) in items(spec, "ports").iter().enumerate() {
        if let Some(protocol) = port.get("appProtocol").filter(|protocol| *protocol != "") {
            let wrong = names::qualified(protocol.as_str().unwrap_or_default());
            let path = format!("spec.ports[{i}].appProtocol");
            errors.extend(wrong.into_iter().map(|why| FieldError::invalid(path.clone(), protocol, why)));
        }
    }
    families(spec, kind, errors);
}

/// Addresses are of one family, IPv4.
fn families(spec: &Value, kind: &str, errors: &mut Vec<FieldError>) {
    let policy = spec.get("ipFamilyPolicy");
    let headless_without_selector = field(spec, "clusterIP") == "None" && spec.get("selector").is_none();
    if let Some(policy) = policy {
        let path = "spec.ipFamilyPolicy";
        let text = policy.as_str().unwrap_or_default();
        if kind == "ExternalName" {
            errors.push(FieldError::forbidden(path, "may not be set for ExternalName services"));
        } else if !FAMILY_POLICIES.contains(&text) {
            errors.push(FieldError::not_supported(path, policy, &FAMILY_POLICIES));
        } else if text == "RequireDualStack" && !headless_without_selector {
            let why = "this cluster is not configured for dual-stack services";
            errors.push(FieldError::invalid(path, policy, why));
        }
    }
    let addresses = items(spec, "clusterIPs");
    for (i, family) in items(spec, "ipFamilies").iter().enumerate() {
        let path = format!("spec.ipFamilies[{i}]");
        let (text, address) = (family.as_str().unwrap_or_default(), addresses.get(i).and_then(Value::as_str));
        let address_is = |v6: bool| address.and_then(|a| a.parse::<IpAddr>().ok()).is_none_or(|a| a.is_ipv6() == v6);
        if !["IPv4", "IPv6"].contains(&text) {
            errors.push(FieldError::not_supported(path, family, &["IPv4", "IPv6"]));
        } else if text == "IPv6" && !headless_without_selector {
            errors.push(FieldError::invalid(path, family, "not configured on this cluster"));
        } else if !address_is(text == "IPv6") {
            let why = format!("expected an {text} value as indicated by `ipFamilies[{i}]`");
            errors.push(FieldError::invalid(format!("spec.clusterIPs[{i}]"), &addresses[i], why));
        }
    }
}

/// Why an address cannot be that of a service.
fn special(ip: IpAddr) -> Option<&'static str> {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    };
    if ip.is_unspecified() {
        Some("may not be unspecified (0.0.0.0 or ::)")
    } else if ip.is_loopback() {
        Some("may not be in the loopback range (127.0.0.0/8, ::1/128)")
    } else if link_local {
        Some("may not be in the link-local range (169.254.0.0/16, fe80::/10)")
    } else if ip.is_multicast() {
        Some("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")
    } else {
        None
    }
}

fn is_range(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let longest = match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    bits.parse::<u8>().is_ok_and(|bits| bits <= longest)
}

/// What is allowed and has no effect.
pub(super) fn warnings(service: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let Some(spec) = service.get("spec") else { return found };
    let (kind, external) = (field(spec, "type"), !items(spec, "externalIPs").is_empty());
    if service.pointer("/metadata/annotations/service.kubernetes.io~1topology-aware-hints").is_some() {
        found.push(
            "annotation service.kubernetes.io/topology-aware-hints is deprecated, please use \
             service.kubernetes.io/topology-mode instead"
                .to_owned(),
        );
    }
    if field(spec, "clusterIP") == "None" {
        for (set, name) in [
            (!field(spec, "loadBalancerIP").is_empty(), "loadBalancerIP"),
            (external, "externalIPs"),
            (field(spec, "sessionAffinity") != "None", "SessionAffinity"),
        ] {
            if set {
                found.push(format!("spec.{name} is ignored for headless services"));
            }
        }
    }
    if kind == "ExternalName" && external {
        found.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    }
    if kind != "ExternalName" && !text(service, "/spec/externalName").is_empty() {
        found.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_belongs_to_load_balancers_is_theirs() {
        for (spec, expected) in [
            (json!({"type": "ClusterIP"}), &[][..]),
            (json!({"type": "ClusterIP", "loadBalancerClass": "a.b/c"}), &["spec.loadBalancerClass"]),
            (json!({"type": "LoadBalancer", "loadBalancerClass": "a.b/c"}), &[]),
            (
                json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0/33"]}),
                &["spec.LoadBalancerSourceRanges[0]"],
            ),
            (json!({"type": "ClusterIP", "externalTrafficPolicy": "Local"}), &["spec.externalTrafficPolicy"]),
            (json!({"type": "ClusterIP", "externalIPs": ["127.0.0.1"]}), &["spec.externalIPs[0]"]),
            (json!({"type": "ClusterIP", "ipFamilies": ["IPv6"]}), &["spec.ipFamilies[0]"]),
            (json!({"type": "ClusterIP", "ipFamilyPolicy": "RequireDualStack"}), &["spec.ipFamilyPolicy"]),
        ] {
            let mut errors = Vec::new();
            validate(&spec, &mut errors);
            assert_eq!(errors.iter().map(|e| e.field.as_str()).collect::<Vec<_>>(), expected, "{spec}");
        }
    }
}
