// Prints the table of the internal types that `apiserver/src/schema/internal.txt` holds: the Go structs, without JSON
// names of their own, that kube-apiserver prints in some messages (`Invalid value: {"Name":...}`, diffs of specs).
// For each field: its name in those messages, where its value is in the served object, its type, and whether it is left
// out when empty. `^name` is a field of the object around it, `metadata/name` one of the metadata.
//
//	go run . > ../../src/schema/internal.txt
package main

import (
	"fmt"
	"reflect"
	"sort"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/kubernetes/pkg/apis/apps"
	"k8s.io/kubernetes/pkg/apis/batch"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/networking"
	"k8s.io/kubernetes/pkg/apis/policy"
	"k8s.io/kubernetes/pkg/apis/rbac"
)

// What messages print, with the served type of the same name.
var roots = []struct{ internal, served any }{
	{core.PodTemplateSpec{}, corev1.PodTemplateSpec{}},
	{core.EphemeralContainer{}, corev1.EphemeralContainer{}},
	{core.PersistentVolumeClaimSpec{}, corev1.PersistentVolumeClaimSpec{}},
	{core.PersistentVolumeSource{}, corev1.PersistentVolumeSource{}},
	{core.VolumeNodeAffinity{}, corev1.VolumeNodeAffinity{}},
	{core.ServicePort{}, corev1.ServicePort{}},
	{core.Taint{}, corev1.Taint{}},
	{rbac.RoleRef{}, rbacv1.RoleRef{}},
	{networking.IngressSpec{}, networkingv1.IngressSpec{}},
	{policy.PodDisruptionBudgetSpec{}, policyv1.PodDisruptionBudgetSpec{}},
	{apps.DeploymentStrategy{}, appsv1.DeploymentStrategy{}},
	{apps.StatefulSetUpdateStrategy{}, appsv1.StatefulSetUpdateStrategy{}},
	{apps.DaemonSetUpdateStrategy{}, appsv1.DaemonSetUpdateStrategy{}},
	{batch.PodFailurePolicy{}, batchv1.PodFailurePolicy{}},
	{batch.SuccessPolicy{}, batchv1.SuccessPolicy{}},
}

var special = map[string]string{
	"k8s.io/apimachinery/pkg/apis/meta/v1.Time":       "@time",
	"k8s.io/apimachinery/pkg/api/resource.Quantity":   "@quantity",
	"k8s.io/apimachinery/pkg/util/intstr.IntOrString": "@intorstring",
	"k8s.io/apimachinery/pkg/apis/meta/v1.FieldsV1":   "@raw",
}

// The namespaces of a pod's host are fields of its spec in the served form.
var above = map[string]bool{"HostNetwork": true, "HostPID": true, "HostIPC": true, "ShareProcessNamespace": true, "HostUsers": true}

func id(t reflect.Type) string {
	parts := strings.Split(t.PkgPath(), "/")
	name := parts[len(parts)-1]
	if name == "v1" {
		name = parts[len(parts)-2]
	}
	return name + "." + t.Name()
}

func spell(t, served reflect.Type) string {
	if s, ok := special[t.PkgPath()+"."+t.Name()]; ok {
		return s
	}
	inner := func() reflect.Type {
		if served != nil && served.Kind() == t.Kind() {
			return served.Elem()
		}
		return nil
	}
	switch t.Kind() {
	case reflect.Pointer:
		return "*" + spell(t.Elem(), inner())
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return "bytes"
		}
		return "[]" + spell(t.Elem(), inner())
	case reflect.Map:
		return "{}" + spell(t.Elem(), inner())
	case reflect.Struct:
		walk(t, served)
		return id(t)
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "bool"
	}
	return "int"
}

// Served fields by their lower-cased Go name: JSON path and type.
type servedField struct {
	path string
	t    reflect.Type
}

func servedFields(t reflect.Type, prefix string, out map[string]servedField) {
	if t == nil || t.Kind() != reflect.Struct {
		return
	}
	for i := 0; i < t.NumField(); i++ {
		f := t.Field(i)
		name, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && (name == "" || strings.Contains(rest, "inline")) {
			servedFields(f.Type, prefix, out)
		} else if f.Anonymous {
			servedFields(f.Type, prefix+name+"/", out)
		} else {
			out[strings.ToLower(f.Name)] = servedField{prefix + name, f.Type}
		}
	}
}

var tables = map[string][]string{}

func walk(t, served reflect.Type) {
	if _, ok := tables[id(t)]; ok {
		return
	}
	tables[id(t)] = nil
	known := map[string]servedField{}
	servedFields(served, "", known)
	var lines []string
	var add func(t reflect.Type)
	add = func(t reflect.Type) {
		for i := 0; i < t.NumField(); i++ {
			f := t.Field(i)
			name, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name == "-" || !f.IsExported() {
				continue
			}
			if f.Anonymous && name == "" {
				add(f.Type)
				continue
			}
			if name == "" {
				name = f.Name
			}
			from, ok := known[strings.ToLower(f.Name)]
			if !ok && above[f.Name] {
				from.path = "^" + strings.ToLower(f.Name[:1]) + f.Name[1:]
			} else if !ok {
				from.path = "-"
			}
			line := fmt.Sprintf(" %s %s %s", name, from.path, spell(f.Type, from.t))
			if strings.Contains(rest, "omitempty") || strings.Contains(rest, "omitzero") {
				line += "?"
			}
			lines = append(lines, line)
		}
	}
	add(t)
	tables[id(t)] = lines
}

func main() {
	for _, root := range roots {
		walk(reflect.TypeOf(root.internal), reflect.TypeOf(root.served))
	}
	names := make([]string, 0, len(tables))
	for name := range tables {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Println("type " + name)
		for _, line := range tables[name] {
			fmt.Println(line)
		}
	}
}
