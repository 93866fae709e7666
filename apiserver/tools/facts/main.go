// Prints the table of the built-in types that `apiserver/src/schema/facts.txt` holds: for each Go struct
// of the Kubernetes API its JSON fields, their Go types, which of them the encoder leaves out when empty,
// and (from the OpenAPI document of the same release) the list and map kinds and patch keys.
//
// usage, with the files of k8s.io/kubernetes v1.34.4:
//
//	go run . api/openapi-spec/swagger.json pkg/generated/openapi/zz_generated.openapi.go > ../../src/schema/facts.txt
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"sort"
	"strings"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	apps "k8s.io/api/apps/v1"
	authentication "k8s.io/api/authentication/v1"
	authorization "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	batch "k8s.io/api/batch/v1"
	coordination "k8s.io/api/coordination/v1"
	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	events "k8s.io/api/events/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	rbac "k8s.io/api/rbac/v1"
	scheduling "k8s.io/api/scheduling/v1"
	storage "k8s.io/api/storage/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// kinds served, by group/version; the value is any pointer to the kind's struct.
var kinds = []struct {
	group, version string
	objects        []any
}{
	{"", "v1", []any{&core.Pod{}, &core.Service{}, &core.ConfigMap{}, &core.Secret{}, &core.Namespace{}, &core.Node{}, &core.Event{},
		&core.ServiceAccount{}, &core.PersistentVolumeClaim{}, &core.PersistentVolume{}, &core.Endpoints{}, &core.ResourceQuota{},
		&core.LimitRange{}, &core.ReplicationController{}, &core.PodTemplate{}, &core.Binding{}}},
	{"apps", "v1", []any{&apps.Deployment{}, &apps.ReplicaSet{}, &apps.StatefulSet{}, &apps.DaemonSet{}, &apps.ControllerRevision{}}},
	{"batch", "v1", []any{&batch.Job{}, &batch.CronJob{}}},
	{"autoscaling", "v1", []any{&autoscalingv1.Scale{}, &autoscalingv1.HorizontalPodAutoscaler{}}},
	{"autoscaling", "v2", []any{&autoscaling.HorizontalPodAutoscaler{}}},
	{"coordination.k8s.io", "v1", []any{&coordination.Lease{}}},
	{"scheduling.k8s.io", "v1", []any{&scheduling.PriorityClass{}}},
	{"rbac.authorization.k8s.io", "v1", []any{&rbac.Role{}, &rbac.RoleBinding{}, &rbac.ClusterRole{}, &rbac.ClusterRoleBinding{}}},
	{"events.k8s.io", "v1", []any{&events.Event{}}},
	{"authorization.k8s.io", "v1", []any{&authorization.SubjectAccessReview{}, &authorization.SelfSubjectAccessReview{},
		&authorization.LocalSubjectAccessReview{}, &authorization.SelfSubjectRulesReview{}}},
	{"authentication.k8s.io", "v1", []any{&authentication.TokenReview{}, &authentication.TokenRequest{}, &authentication.SelfSubjectReview{}}},
	{"discovery.k8s.io", "v1", []any{&discovery.EndpointSlice{}}},
	{"policy", "v1", []any{&policy.PodDisruptionBudget{}, &policy.Eviction{}}},
	{"networking.k8s.io", "v1", []any{&networking.NetworkPolicy{}, &networking.Ingress{}, &networking.IngressClass{}}},
	{"storage.k8s.io", "v1", []any{&storage.StorageClass{}}},
	{"apiextensions.k8s.io", "v1", []any{&apiextensions.CustomResourceDefinition{}}},
	{"admissionregistration.k8s.io", "v1", []any{&admissionregistration.ValidatingWebhookConfiguration{}, &admissionregistration.MutatingWebhookConfiguration{}}},
	{"meta.k8s.io", "v1", []any{&meta.DeleteOptions{}, &meta.ListMeta{}, &meta.Status{}}},
}

// structs whose JSON form is not that of their fields
var special = map[string]string{
	"k8s.io/apimachinery/pkg/apis/meta/v1.Time":                                             "@time",
	"k8s.io/apimachinery/pkg/apis/meta/v1.MicroTime":                                        "@microtime",
	"k8s.io/apimachinery/pkg/apis/meta/v1.Duration":                                         "@duration",
	"k8s.io/apimachinery/pkg/apis/meta/v1.FieldsV1":                                         "@fields",
	"k8s.io/apimachinery/pkg/api/resource.Quantity":                                         "@quantity",
	"k8s.io/apimachinery/pkg/util/intstr.IntOrString":                                       "@intorstring",
	"k8s.io/apimachinery/pkg/runtime.RawExtension":                                          "@raw",
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1.JSON":                         "@json",
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1.JSONSchemaPropsOrBool":        "@schemaorbool",
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1.JSONSchemaPropsOrArray":       "@schemaorarray",
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1.JSONSchemaPropsOrStringArray": "@schemaorstrings",
}

func shorten(pkg string) string {
	for _, p := range []string{"k8s.io/api/", "k8s.io/apimachinery/pkg/apis/", "k8s.io/apiextensions-apiserver/pkg/apis/", "k8s.io/apimachinery/pkg/"} {
		if rest, ok := strings.CutPrefix(pkg, p); ok {
			return rest
		}
	}
	panic(pkg)
}

func model(pkg, name string) string {
	for p, m := range map[string]string{"k8s.io/api/": "io.k8s.api.", "k8s.io/apimachinery/": "io.k8s.apimachinery.", "k8s.io/apiextensions-apiserver/": "io.k8s.apiextensions-apiserver."} {
		if rest, ok := strings.CutPrefix(pkg, p); ok {
			return m + strings.ReplaceAll(rest, "/", ".") + "." + name
		}
	}
	panic(pkg)
}

var types = map[string]reflect.Type{}

func spell(t reflect.Type) string {
	if s, ok := special[t.PkgPath()+"."+t.Name()]; ok {
		return s
	}
	name := ""
	if t.PkgPath() != "" && t.Kind() != reflect.Struct {
		name = "{" + shorten(t.PkgPath()) + "." + t.Name() + "}"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return "*" + spell(t.Elem())
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return name + "bytes"
		}
		return name + "[]" + spell(t.Elem())
	case reflect.Map:
		if t.Key().Kind() != reflect.String {
			panic(t)
		}
		if t.Key().PkgPath() != "" {
			return name + "map<" + shorten(t.Key().PkgPath()) + "." + t.Key().Name() + ">" + spell(t.Elem())
		}
		return name + "map<>" + spell(t.Elem())
	case reflect.Struct:
		walk(t)
		return shorten(t.PkgPath()) + "." + t.Name()
	}
	return name + t.Kind().String()
}

type field struct {
	name, spec string
}

var fields = map[string][]field{}

func walk(t reflect.Type) {
	id := shorten(t.PkgPath()) + "." + t.Name()
	if _, ok := types[id]; ok {
		return
	}
	types[id] = t
	var out []field
	var add func(t reflect.Type)
	add = func(t reflect.Type) {
		for i := 0; i < t.NumField(); i++ {
			f := t.Field(i)
			tag, ok := f.Tag.Lookup("json")
			name, options, _ := strings.Cut(tag, ",")
			if !f.IsExported() || name == "-" {
				continue
			}
			if f.Anonymous && name == "" {
				add(f.Type)
				continue
			}
			if !ok || name == "" {
				panic(fmt.Sprint(t, f.Name))
			}
			s := spell(f.Type)
			if !strings.Contains(options, "omitempty") {
				s += "!"
			}
			if strings.Contains(options, "omitzero") {
				s += "~"
			}
			out = append(out, field{name, s})
		}
	}
	add(t)
	fields[id] = out
}

var (
	function = regexp.MustCompile(`^func schema_(\w+)\(ref `)
	property = regexp.MustCompile(`^\t+"([^"]+)": \{$`)
	enum     = regexp.MustCompile(`^\t+Enum: +\[\]interface\{\}\{(.*)\},$`)
)

// enums gives the values of fields that have a closed set of them, by the generated function and the field.
func enums(path string) map[[2]string][]string {
	raw, err := os.ReadFile(path)
	if err != nil {
		panic(err)
	}
	found := map[[2]string][]string{}
	var owner, name string
	for _, line := range strings.Split(string(raw), "\n") {
		if m := function.FindStringSubmatch(line); m != nil {
			owner = m[1]
		} else if m := property.FindStringSubmatch(line); m != nil {
			name = m[1]
		} else if m := enum.FindStringSubmatch(line); m != nil {
			for _, v := range strings.Split(m[1], ", ") {
				found[[2]string{owner, name}] = append(found[[2]string{owner, name}], strings.Trim(v, `"`))
			}
		}
	}
	return found
}

// generated is the name by which the generated code calls a type.
func generated(t reflect.Type) string {
	p := t.PkgPath()
	p = strings.NewReplacer("k8s.io/api/", "k8sio_api_", "k8s.io/apimachinery/pkg/apis/", "pkg_apis_", "k8s.io/apiextensions-apiserver/pkg/apis/", "pkg_apis_").Replace(p)
	return strings.ReplaceAll(p, "/", "_") + "_" + t.Name()
}

func main() {
	raw, err := os.ReadFile(os.Args[1])
	if err != nil {
		panic(err)
	}
	var swagger struct {
		Definitions map[string]map[string]any
	}
	if err := json.Unmarshal(raw, &swagger); err != nil {
		panic(err)
	}
	values := enums(os.Args[2])
	for _, g := range kinds {
		for _, o := range g.objects {
			t := reflect.TypeOf(o).Elem()
			walk(t)
			fmt.Printf("kind %s %s %s %s\n", orDash(g.group), g.version, t.Name(), shorten(t.PkgPath())+"."+t.Name())
		}
	}
	walk(reflect.TypeOf(apiextensions.JSONSchemaProps{}))
	var ids []string
	for id := range types {
		ids = append(ids, id)
	}
	sort.Strings(ids)
	for _, id := range ids {
		t := types[id]
		def := swagger.Definitions[model(t.PkgPath(), t.Name())]
		props, _ := def["properties"].(map[string]any)
		fmt.Printf("type %s", id)
		if def == nil {
			fmt.Fprintln(os.Stderr, "not in the document:", id)
		}
		if def["x-kubernetes-map-type"] == "atomic" {
			fmt.Print(" atomic")
		}
		fmt.Println()
		for _, f := range fields[id] {
			fmt.Printf(" %s %s", f.name, f.spec)
			p, _ := props[f.name].(map[string]any)
			if k, _ := p["x-kubernetes-list-type"].(string); k != "" {
				fmt.Printf(" list=%s", k)
			}
			if k, _ := p["x-kubernetes-list-map-keys"].([]any); k != nil {
				var keys []string
				for _, x := range k {
					keys = append(keys, x.(string))
				}
				fmt.Printf(" keys=%s", strings.Join(keys, ","))
			}
			if p["x-kubernetes-map-type"] == "atomic" {
				fmt.Print(" map=atomic")
			}
			if k, _ := p["x-kubernetes-patch-merge-key"].(string); k != "" {
				fmt.Printf(" patchkey=%s", k)
			}
			if k, _ := p["x-kubernetes-patch-strategy"].(string); k != "" {
				fmt.Printf(" patch=%s", k)
			}
			// The second edition of the document leaves defaults out; a key of a list with a default is what matters.
			if f.name == "protocol" && (t == reflect.TypeOf(core.ContainerPort{}) || t == reflect.TypeOf(core.ServicePort{})) {
				fmt.Print(" default=TCP")
			}
			if v := values[[2]string{generated(t), f.name}]; v != nil && !strings.HasPrefix(f.spec, "[]") {
				fmt.Printf(" enum=%s", strings.Join(v, "|"))
			}
			fmt.Println()
		}
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
