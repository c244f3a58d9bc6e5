//go:build e2e

package policies

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/btrfs-csi/btrfs-csi/test/e2e/cluster"
	"github.com/btrfs-csi/btrfs-csi/test/e2e/components"
)

const (
	driver    = "btrfs-csi.github.io"
	release   = "btrfs-csi" // name of the release of the chart and of the service account
	namespace = "btrfs-csi"
	victims   = "victims" // the namespace of the claims
	mine      = "node1"   // the node whose token the attacker has
	theirs    = "node2"
)

var (
	ctx = context.Background()
	// admin is the client of an administrator. attacker has the token of the driver on the node mine.
	// unbound has a token that is not bound to a pod.
	admin, attacker, unbound dynamic.Interface
	core                     kubernetes.Interface
)

func TestMain(m *testing.M) {
	os.Exit((&cluster.Lab{Build: components.BuildControlPlane}).Main(func() int {
		lab, err := setUp()
		code := 1
		if err == nil {
			code = m.Run()
		}
		if lab != nil {
			err = errors.Join(err, lab.Stop())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "Error:", err)
			return 1
		}
		return code
	}))
}

// setUp starts an API server and installs the chart.
func setUp() (*cluster.Cluster, error) {
	chart, helm := os.Getenv("E2E_CHART"), os.Getenv("HELM")
	if chart == "" || helm == "" {
		return nil, errors.New("E2E_CHART (a directory) and HELM (the program) have to be set; make policies does it")
	}
	lab, err := cluster.Start(ctx, cluster.Options{Nodes: []cluster.NodeOptions{}, Log: os.Stderr})
	if err != nil {
		return nil, err
	}
	install := exec.Command(helm, "install", release, chart, "--namespace", namespace, "--create-namespace", "--set", "snapshotController.enabled=true")
	install.Env = append(os.Environ(), "KUBECONFIG="+lab.Kubeconfig())
	if out, err := install.CombinedOutput(); err != nil {
		return lab, fmt.Errorf("helm install: %w: %s", err, out)
	}
	core = lab.Client()
	if admin, err = dynamic.NewForConfig(lab.RESTConfig()); err != nil {
		return lab, err
	}
	if err := errors.Join(makeNode(mine), makeNode(theirs)); err != nil {
		return lab, err
	}
	pod, err := makePod(mine)
	if err != nil {
		return lab, err
	}
	if attacker, err = asDriver(lab.RESTConfig(), pod); err != nil {
		return lab, err
	}
	if unbound, err = asDriver(lab.RESTConfig(), nil); err != nil {
		return lab, err
	}
	return lab, awaitPolicies()
}

// awaitPolicies waits until the API server enforces the policies.
func awaitPolicies() error {
	var err error
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		_, err = (kind{coreV1, "nodes"}).objects(unbound, "").Patch(ctx, mine, types.MergePatchType, []byte(`{"metadata":{"labels":{"x":"y"}}}`), metav1.PatchOptions{DryRun: dry})
		if err != nil && strings.Contains(err.Error(), "ValidatingAdmissionPolicy '"+release) {
			return nil
		}
	}
	return fmt.Errorf("the policies are not in force: %w", err)
}

// makePod makes a pod of the driver on a node. It does not run.
func makePod(node string) (*corev1.Pod, error) {
	return core.CoreV1().Pods(namespace).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "driver-" + node},
		Spec: corev1.PodSpec{
			NodeName: node, ServiceAccountName: release, Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			Containers: []corev1.Container{{Name: "driver", Image: "none"}},
		},
	}, metav1.CreateOptions{})
}

// asDriver returns a client with a token of the driver, which is bound to a pod unless that is nil.
func asDriver(admin *rest.Config, pod *corev1.Pod) (dynamic.Interface, error) {
	request := &authenticationv1.TokenRequest{}
	if pod != nil {
		request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}
	}
	token, err := core.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, release, request, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	config := rest.AnonymousClientConfig(admin)
	config.BearerToken, config.QPS = token.Status.Token, -1
	return dynamic.NewForConfig(config)
}
