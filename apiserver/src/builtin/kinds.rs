//! Kinds that need no rules beyond the common ones.

use super::table::{BASE, WITH_STATUS};
use super::{BuiltinKind, NameRule};

const ALL: &[&str] = &["all"];
const CREATE: &[&str] = &["create"];

/// A review: an object that is only ever created, and answered.
const REVIEW: BuiltinKind = BuiltinKind { verbs: CREATE, namespaced: false, ..BASE };
const RBAC: BuiltinKind = BuiltinKind {
    group: "rbac.authorization.k8s.io",
    name_rule: NameRule::PathSegment,
    create_on_update: true,
    ..BASE
};
const APPS: BuiltinKind =
    BuiltinKind { group: "apps", categories: ALL, generation: true, acted_on: false, ..WITH_STATUS };

pub(super) const KINDS: &[BuiltinKind] = &[
    BuiltinKind { kind: "Binding", plural: "bindings", singular: "binding", verbs: CREATE, ..BASE },
    BuiltinKind { kind: "ConfigMap", plural: "configmaps", singular: "configmap", short_names: &["cm"], ..BASE },
    BuiltinKind { kind: "Endpoints", plural: "endpoints", singular: "endpoints", short_names: &["ep"], ..BASE },
    BuiltinKind { kind: "Event", plural: "events", singular: "event", short_names: &["ev"], ..BASE },
    BuiltinKind { kind: "LimitRange", plural: "limitranges", singular: "limitrange", short_names: &["limits"], ..BASE },
    BuiltinKind {
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        namespaced: false,
        verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
        subresources: &["finalize", "status"],
        name_rule: NameRule::Label,
        ..WITH_STATUS
    },
    BuiltinKind {
        kind: "Node",
        plural: "nodes",
        singular: "node",
        short_names: &["no"],
        namespaced: false,
        subresources: &["proxy", "status"],
        ..WITH_STATUS
    },
    BuiltinKind {
        kind: "PersistentVolumeClaim",
        plural: "persistentvolumeclaims",
        singular: "persistentvolumeclaim",
        short_names: &["pvc"],
        ..WITH_STATUS
    },
    BuiltinKind {
        kind: "PersistentVolume",
        plural: "persistentvolumes",
        singular: "persistentvolume",
        short_names: &["pv"],
        namespaced: false,
        ..WITH_STATUS
    },
    BuiltinKind {
        kind: "Pod",
        plural: "pods",
        singular: "pod",
        short_names: &["po"],
        categories: ALL,
        subresources: &["attach", "binding", "eviction", "exec", "log", "portforward", "status"],
        generation: true,
        ..WITH_STATUS
    },
    BuiltinKind { kind: "PodTemplate", plural: "podtemplates", singular: "podtemplate", generation: true, ..BASE },
    BuiltinKind {
        kind: "ReplicationController",
        plural: "replicationcontrollers",
        singular: "replicationcontroller",
        short_names: &["rc"],
        categories: ALL,
        subresources: &["scale", "status"],
        generation: true,
        acted_on: false,
        ..WITH_STATUS
    },
    BuiltinKind {
        kind: "ResourceQuota",
        plural: "resourcequotas",
        singular: "resourcequota",
        short_names: &["quota"],
        ..WITH_STATUS
    },
    BuiltinKind { kind: "Secret", plural: "secrets", singular: "secret", ..BASE },
    BuiltinKind {
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short_names: &["sa"],
        subresources: &["token"],
        ..BASE
    },
    BuiltinKind {
        kind: "Service",
        plural: "services",
        singular: "service",
        short_names: &["svc"],
        categories: ALL,
        name_rule: NameRule::Label1035,
        ..WITH_STATUS
    },
    BuiltinKind {
        group: "admissionregistration.k8s.io",
        kind: "MutatingWebhookConfiguration",
        plural: "mutatingwebhookconfigurations",
        singular: "mutatingwebhookconfiguration",
        namespaced: false,
        generation: true,
        acted_on: false,
        ..BASE
    },
    BuiltinKind {
        group: "admissionregistration.k8s.io",
        kind: "ValidatingWebhookConfiguration",
        plural: "validatingwebhookconfigurations",
        singular: "validatingwebhookconfiguration",
        namespaced: false,
        generation: true,
        acted_on: false,
        ..BASE
    },
    BuiltinKind {
        group: "apiextensions.k8s.io",
        kind: "CustomResourceDefinition",
        plural: "customresourcedefinitions",
        singular: "customresourcedefinition",
        short_names: &["crd", "crds"],
        categories: &["api-extensions"],
        namespaced: false,
        generation: true,
        default: |_| {},
        ..WITH_STATUS
    },
    BuiltinKind {
        kind: "ControllerRevision",
        plural: "controllerrevisions",
        singular: "controllerrevision",
        categories: &[],
        subresources: &[],
        generation: false,
        acted_on: true,
        ..APPS
    },
    BuiltinKind { kind: "DaemonSet", plural: "daemonsets", singular: "daemonset", short_names: &["ds"], ..APPS },
    BuiltinKind {
        kind: "Deployment",
        plural: "deployments",
        singular: "deployment",
        short_names: &["deploy"],
        subresources: &["scale", "status"],
        ..APPS
    },
    BuiltinKind {
        kind: "ReplicaSet",
        plural: "replicasets",
        singular: "replicaset",
        short_names: &["rs"],
        subresources: &["scale", "status"],
        ..APPS
    },
    BuiltinKind {
        kind: "StatefulSet",
        plural: "statefulsets",
        singular: "statefulset",
        short_names: &["sts"],
        subresources: &["scale", "status"],
        ..APPS
    },
    BuiltinKind {
        group: "authentication.k8s.io",
        kind: "SelfSubjectReview",
        plural: "selfsubjectreviews",
        singular: "selfsubjectreview",
        ..REVIEW
    },
    BuiltinKind {
        group: "authentication.k8s.io",
        kind: "TokenReview",
        plural: "tokenreviews",
        singular: "tokenreview",
        ..REVIEW
    },
    BuiltinKind {
        group: "authorization.k8s.io",
        kind: "LocalSubjectAccessReview",
        plural: "localsubjectaccessreviews",
        singular: "localsubjectaccessreview",
        namespaced: true,
        ..REVIEW
    },
    BuiltinKind {
        group: "authorization.k8s.io",
        kind: "SelfSubjectAccessReview",
        plural: "selfsubjectaccessreviews",
        singular: "selfsubjectaccessreview",
        ..REVIEW
    },
    BuiltinKind {
        group: "authorization.k8s.io",
        kind: "SelfSubjectRulesReview",
        plural: "selfsubjectrulesreviews",
        singular: "selfsubjectrulesreview",
        ..REVIEW
    },
    BuiltinKind {
        group: "authorization.k8s.io",
        kind: "SubjectAccessReview",
        plural: "subjectaccessreviews",
        singular: "subjectaccessreview",
        ..REVIEW
    },
    BuiltinKind {
        group: "autoscaling",
        version: "v2",
        kind: "HorizontalPodAutoscaler",
        plural: "horizontalpodautoscalers",
        singular: "horizontalpodautoscaler",
        short_names: &["hpa"],
        categories: ALL,
        acted_on: false,
        ..WITH_STATUS
    },
    BuiltinKind {
        group: "batch",
        kind: "CronJob",
        plural: "cronjobs",
        singular: "cronjob",
        short_names: &["cj"],
        categories: ALL,
        generation: true,
        acted_on: false,
        ..WITH_STATUS
    },
    BuiltinKind {
        group: "batch",
        kind: "Job",
        plural: "jobs",
        singular: "job",
        categories: ALL,
        generation: true,
        acted_on: false,
        orphan_by_default: true,
        ..WITH_STATUS
    },
    BuiltinKind {
        group: "coordination.k8s.io",
        kind: "Lease",
        plural: "leases",
        singular: "lease",
        unconditional_update: false,
        create_on_update: true,
        ..BASE
    },
    BuiltinKind {
        group: "discovery.k8s.io",
        kind: "EndpointSlice",
        plural: "endpointslices",
        singular: "endpointslice",
        generation: true,
        ..BASE
    },
    BuiltinKind {
        group: "networking.k8s.io",
        kind: "IngressClass",
        plural: "ingressclasses",
        singular: "ingressclass",
        namespaced: false,
        generation: true,
        acted_on: false,
        ..BASE
    },
    BuiltinKind {
        group: "networking.k8s.io",
        kind: "Ingress",
        plural: "ingresses",
        singular: "ingress",
        short_names: &["ing"],
        generation: true,
        acted_on: false,
        ..WITH_STATUS
    },
    BuiltinKind {
        group: "networking.k8s.io",
        kind: "NetworkPolicy",
        plural: "networkpolicies",
        singular: "networkpolicy",
        short_names: &["netpol"],
        generation: true,
        acted_on: false,
        ..BASE
    },
    BuiltinKind {
        group: "policy",
        kind: "PodDisruptionBudget",
        plural: "poddisruptionbudgets",
        singular: "poddisruptionbudget",
        short_names: &["pdb"],
        generation: true,
        acted_on: false,
        ..WITH_STATUS
    },
    BuiltinKind {
        kind: "ClusterRoleBinding",
        plural: "clusterrolebindings",
        singular: "clusterrolebinding",
        namespaced: false,
        ..RBAC
    },
    BuiltinKind { kind: "ClusterRole", plural: "clusterroles", singular: "clusterrole", namespaced: false, ..RBAC },
    BuiltinKind { kind: "RoleBinding", plural: "rolebindings", singular: "rolebinding", ..RBAC },
    BuiltinKind { kind: "Role", plural: "roles", singular: "role", ..RBAC },
    BuiltinKind {
        group: "scheduling.k8s.io",
        kind: "PriorityClass",
        plural: "priorityclasses",
        singular: "priorityclass",
        short_names: &["pc"],
        namespaced: false,
        generation: true,
        ..BASE
    },
    BuiltinKind {
        group: "storage.k8s.io",
        kind: "StorageClass",
        plural: "storageclasses",
        singular: "storageclass",
        short_names: &["sc"],
        namespaced: false,
        create_on_update: true,
        acted_on: false,
        ..BASE
    },
];
