// Objects reads manifests and fails for each that Kubernetes would not take as it is: of a kind
// that it does not know, with a field that the kind does not have, twice the same, or of another
// type.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
)

func main() {
	n, err := check(os.Stdin)
	if err == nil && n == 0 {
		err = errors.New("there are no objects")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// check returns how many objects there are, and what is wrong with them.
func check(manifests io.Reader) (n int, faults error) {
	known := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, apiextensionsv1.AddToScheme, snapshotv1.AddToScheme, groupv1.AddToScheme, monitoringv1.AddToScheme} {
		if err := add(known); err != nil {
			return 0, err
		}
	}
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, known, known, json.SerializerOptions{Yaml: true, Strict: true})
	documents := utilyaml.NewYAMLReader(bufio.NewReader(manifests))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return n, faults
		} else if err != nil {
			return n, errors.Join(faults, err)
		}
		var content any
		if err := utilyaml.Unmarshal(document, &content); err == nil && content == nil {
			continue // comments alone
		}
		n++
		if _, _, err := strict.Decode(document, nil, nil); err != nil {
			faults = errors.Join(faults, fmt.Errorf("object %d: %w:\n%.300s", n, err, document))
		}
	}
}
