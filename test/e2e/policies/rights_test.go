//go:build e2e

package policies

import (
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// right is one verb on one resource.
type right struct {
	verb, group, resource string // a subresource follows after a slash
	names                 string // of the objects; "" for all
}

// reads has the reason for each right to read.
var reads = map[string]string{
	"nodes":                       "whether another node is alive",
	"persistentvolumes":           "which volumes the cluster knows of",
	"persistentvolumeclaims":      "which claims are made from a source",
	"pods":                        "which DaemonSet the own pod is of; pods of the release's namespace only",
	"storageclasses":              "which claims are for this driver",
	"csistoragecapacities":        "the free space that was reported",
	"volumesnapshots":             "which claims are made from one",
	"volumesnapshotcontents":      "which snapshots the cluster knows of",
	"volumesnapshotclasses":       "the parameters of snapshots",
	"volumegroupsnapshotcontents": "which groups of snapshots are to be taken or deleted",
	"volumegroupsnapshotclasses":  "the parameters of groups",
	"leases":                      "who is elected",
	"subvolumes":                  "where a volume is, and what it shall become",
	"pools":                       "which node has a pool",
}

// rights returns the rights of the driver's service account in the roles.
func rights(t *testing.T) (found []right) {
	t.Helper()
	var rules []rbacv1.PolicyRule
	own := func(subjects []rbacv1.Subject) bool {
		return slices.ContainsFunc(subjects, func(s rbacv1.Subject) bool {
			return s.Kind == rbacv1.ServiceAccountKind && s.Namespace == namespace && s.Name == release
		})
	}
	everywhere, err := core.RbacV1().ClusterRoleBindings().List(ctx, metav1.ListOptions{})
	no(t, err)
	for _, b := range everywhere.Items {
		if own(b.Subjects) {
			role, err := core.RbacV1().ClusterRoles().Get(ctx, b.RoleRef.Name, metav1.GetOptions{})
			no(t, err)
			rules = append(rules, role.Rules...)
		}
	}
	bindings, err := core.RbacV1().RoleBindings("").List(ctx, metav1.ListOptions{})
	no(t, err)
	for _, b := range bindings.Items {
		if own(b.Subjects) {
			if b.RoleRef.Kind != "Role" || b.Namespace != namespace {
				t.Errorf("RoleBinding %s/%s gives %s %s: nobody looks at that", b.Namespace, b.Name, b.RoleRef.Kind, b.RoleRef.Name)
				continue
			}
			role, err := core.RbacV1().Roles(b.Namespace).Get(ctx, b.RoleRef.Name, metav1.GetOptions{})
			no(t, err)
			rules = append(rules, role.Rules...)
		}
	}
	for _, rule := range rules {
		if len(rule.NonResourceURLs) > 0 {
			t.Errorf("the driver may reach %q: nobody looks at that", rule.NonResourceURLs)
		}
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					found = append(found, right{verb, group, resource, strings.Join(rule.ResourceNames, ",")})
				}
			}
		}
	}
	if len(found) == 0 {
		t.Fatal("the driver has no rights")
	}
	return found
}

// TestRights uses each right of the driver for changes that it must not make.
func TestRights(t *testing.T) {
	objects := makeVictims(t)
	tried := map[right]bool{}
	for _, r := range rights(t) {
		if tried[r] {
			continue
		}
		tried[r] = true
		t.Run(strings.Join([]string{r.verb, r.resource, r.group, r.names}, " "), func(t *testing.T) {
			switch r.verb {
			case "get", "list", "watch":
				if reads[r.resource] == "" {
					t.Error("why the driver has to read it is not said in reads")
				}
			case "create", "update", "patch", "delete":
				attacked := 0
				for _, v := range objects {
					if v.is(r) {
						attacked++
						t.Run(v.what, func(t *testing.T) { v.attack(t, r.verb) })
					}
				}
				if attacked == 0 {
					t.Error("nobody attacks with this right: add an object that it reaches to makeVictims")
				}
			default:
				t.Error("nobody knows how to attack with this verb")
			}
		})
	}
}

func no(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
