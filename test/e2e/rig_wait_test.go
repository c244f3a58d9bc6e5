//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/yaml"
)

type object interface {
	comparable
	metav1.Object
	runtime.Object
}

// watched is a client of one kind, in one namespace if the kind has namespaces: api().CoreV1().Pods(ns),
// lab.subvolumes, ...
type watched[L runtime.Object] interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}

// await waits until an object exists and met returns true for it, and returns it. want completes the
// sentence "waited for it to ..." of the failure.
func await[T object, L runtime.Object](t *testing.T, client watched[L], name, want string, met func(T) bool) T {
	t.Helper()
	var none, last T
	err := follow(patience, client, named(name), func(o T) bool {
		last = o
		return o != none && met(o)
	})
	if err != nil {
		t.Fatal(timedOut(err, last, name, want))
	}
	return last
}

// named selects one object.
func named(name string) metav1.ListOptions {
	return metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String()}
}

// awaitGone waits until an object does not exist.
func awaitGone[T object, L runtime.Object](t *testing.T, client watched[L], name string, _ T) {
	t.Helper()
	var none, last T
	err := follow(patience, client, named(name), func(o T) bool {
		last = o
		return o == none
	})
	if err != nil {
		t.Fatal(timedOut(err, last, name, "be gone"))
	}
}

// never fails if an object gets a state that it must not have, within some time.
func never[T object, L runtime.Object](t *testing.T, d time.Duration, client watched[L], name, unwanted string, met func(T) bool) {
	t.Helper()
	var none, last T
	err := follow(d, client, named(name), func(o T) bool {
		last = o
		return o != none && met(o)
	})
	switch {
	case err == nil:
		t.Fatalf("%T %s must not %s:\n%s", last, name, unwanted, describe(last))
	case !errors.Is(err, context.DeadlineExceeded):
		t.Fatal(err)
	}
}

// follow watches the selected objects, and calls met with each state, or nil if there is none, until met
// returns true. If the watch ends, for example with the API server, follow starts a new one.
func follow[T object, L runtime.Object](d time.Duration, client watched[L], options metav1.ListOptions, met func(T) bool) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	var last error
	for {
		done, err := followOnce(ctx, client, options, met)
		if done {
			return nil
		}
		if err != nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("waited %v: %w", d, ctx.Err()), last)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func followOnce[T object, L runtime.Object](ctx context.Context, client watched[L], options metav1.ListOptions, met func(T) bool) (bool, error) {
	var none T
	list, err := client.List(ctx, options)
	if err != nil {
		return false, ignoreEnd(ctx, err)
	}
	found, err := meta.ExtractList(list)
	if err != nil {
		return false, err
	}
	if len(found) == 0 && met(none) {
		return true, nil
	}
	for _, o := range found {
		if met(o.(T)) {
			return true, nil
		}
	}
	access, err := meta.ListAccessor(list)
	if err != nil {
		return false, err
	}
	options.ResourceVersion = access.GetResourceVersion()
	events, err := client.Watch(ctx, options)
	if err != nil {
		return false, ignoreEnd(ctx, err)
	}
	defer events.Stop()
	for event := range events.ResultChan() {
		now, ok := event.Object.(T)
		switch {
		case !ok:
			return false, nil // an error: the version is too old, or the server ends
		case event.Type == watch.Deleted:
			now = none
		}
		if met(now) {
			return true, nil
		}
	}
	return false, nil
}

// ignoreEnd returns err, nil if that is only the end of the wait.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// eventually polls a condition that cannot be watched.
func eventually(t *testing.T, want string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %v until %s: %v\n%s", patience, want, err, explain(driverNamespace))
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// timedOut returns the failure of a wait, with all that may explain it.
func timedOut[T object](err error, last T, name, want string) string {
	namespace := ""
	if !reflect.ValueOf(last).IsNil() {
		namespace = last.GetNamespace()
	}
	return fmt.Sprintf("%T %s: %v for it to %s. It is:\n%s\n%s", last, name, err, want, describe(last), explain(namespace, driverNamespace))
}

// describe formats an object without the fields that nobody reads.
func describe[T object](o T) string {
	if reflect.ValueOf(o).IsNil() {
		return "not there"
	}
	shown := o.DeepCopyObject().(T)
	shown.SetManagedFields(nil)
	text, err := yaml.Marshal(shown)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// maxEvents is how many of the last Events of a namespace a failure shows.
const maxEvents = 60

// explain returns the Events of namespaces and the last lines of their logs.
func explain(namespaces ...string) string {
	var b strings.Builder
	namespaces = slices.DeleteFunc(slices.Compact(namespaces), func(n string) bool { return n == "" })
	// Events about cluster-scoped objects are in "default".
	for _, namespace := range slices.Concat(namespaces, []string{metav1.NamespaceDefault}) {
		events, err := api().CoreV1().Events(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			fmt.Fprintf(&b, "Events of %s: %v\n", namespace, err)
			continue
		}
		slices.SortFunc(events.Items, func(a, b corev1.Event) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
		if cut := len(events.Items) - maxEvents; cut > 0 {
			fmt.Fprintf(&b, "... %d Events of %s\n", cut, namespace)
			events.Items = events.Items[cut:]
		}
		for _, e := range events.Items {
			fmt.Fprintf(&b, "Event %s %s %s/%s: %s: %s (%d times)\n", e.CreationTimestamp.Format(time.TimeOnly),
				e.InvolvedObject.Kind, namespace, e.InvolvedObject.Name, e.Reason, e.Message, max(e.Count, 1))
		}
	}
	for _, namespace := range namespaces {
		pods, err := api().CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			fmt.Fprintf(&b, "Pods of %s: %v\n", namespace, err)
			continue
		}
		for _, pod := range pods.Items {
			for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
				fmt.Fprintf(&b, "Container %s/%s %s on %s: %+v, restarted %d times; the end of its log:\n%s\n",
					namespace, pod.Name, status.Name, pod.Spec.NodeName, status.State, status.RestartCount, logOf(&pod, status.Name))
			}
		}
	}
	return b.String()
}

func logOf(pod *corev1.Pod, container string) string {
	lines := int64(25)
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	log, err := api().CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{Container: container, TailLines: &lines}).Stream(ctx)
	if err != nil {
		return err.Error()
	}
	defer log.Close()
	text, _ := io.ReadAll(log)
	return string(text)
}
