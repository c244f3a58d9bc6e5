package simulate

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// mend is a fault that the driver had once. The simulation has to find it again in a driver
// whose mend is taken out.
type mend struct {
	fault string
	focus string // see focus
	edits []edit
	// breaks are words of the promise that is broken without the mend.
	breaks string
}

// edit replaces a text in a file of the driver.
type edit struct{ file, old, with string }

// mends are some of those that CHANGELOG.md and docs/reliability.md name.
var mends = []mend{
	{
		"Two nodes with copies of a disk take the Pool from each other without end",
		"copy disk,power cut",
		[]edit{
			{"pkg/cluster/ownership/acquire.go", `case want.owned && takenFrom == "":`, `case want.owned:`},
			{"pkg/cluster/ownership/acquire.go", `case from == me && (want.rival != "" || takenFrom == unknownNode):`, `case takenFrom == "nobody":`},
		},
		"without end|does not settle: pool",
	},
	{
		"Both nodes with copies of a disk serve it",
		"copy disk",
		[]edit{{"pkg/cluster/ownership/conflicts.go", "	c.exclude(reasons)\n", "	_ = reasons\n"}},
		"is served by node",
	},
	{
		"A volume is deleted though a second PersistentVolume has it",
		"second volume,wait",
		[]edit{
			{"pkg/driver/controller.go", "if err := d.checkUnkept(ctx, ref); err != nil {", "if err := d.checkUnkept(ctx, ref); false {"},
			{"pkg/driver/controller.go", "	if here {\n", "	if here && false {\n"},
		},
		"keeps",
	},
	{
		"The Subvolumes of a disk that was moved stay on the old node, where the volume was deleted",
		"move disk,partition",
		[]edit{{"pkg/cluster/mirror/subvolumes.go", "if err := c.takeOver(ctx); err != nil {", "if err := error(nil); err != nil {"}},
		"Subvolume .* of node",
	},
	{
		"The topology labels of a pool that has gone stay on the Node",
		"move disk",
		[]edit{{"pkg/cluster/ownership/labels.go", `			want[key] = ""`, `			want[key] = node.Labels[key]`}},
		"the labels of",
	},
	{
		"A delete is acknowledged while the volume is on another node",
		"move disk,partition",
		[]edit{{"pkg/driver/cluster.go", "	owner, err := d.elsewhere(ctx, ref)\n	if err != nil || owner == \"\" {\n		return false, err\n	}\n	return false, answer(codes.Unavailable", "	owner := \"\"\n	if owner == \"\" {\n		return false, nil\n	}\n	return false, answer(codes.Unavailable"}},
		"is left over|is still being deleted",
	},
	{
		"A snapshot of a volume whose pool has no label yet is never made",
		"move disk,restart",
		[]edit{{"pkg/cluster/placement/snapshots.go", "	case c.isUnassigned(content):\n", "	case false:\n"}},
		"VolumeSnapshot .* is not ready",
	},
	{
		"The Subvolume of a volume with two PersistentVolumes is written without end",
		"second volume",
		[]edit{{"pkg/cluster/client/informer.go", "strings.Compare(a.GetName(), b.GetName())", "strings.Compare(a.GetName(), a.GetName())"}},
		"written without end",
	},
}

// overlay writes the driver without a mend below dir, for go test -overlay, and returns the
// path of the list of its files. source is the directory of the driver's module.
func (m mend) overlay(source, dir string) (string, error) {
	texts := map[string]string{}
	for _, e := range m.edits {
		path := filepath.Join(source, e.file)
		if texts[path] == "" {
			data, err := os.ReadFile(path)
			if err != nil {
				return "", err
			}
			texts[path] = string(data)
		}
		if strings.Count(texts[path], e.old) != 1 {
			return "", fmt.Errorf("%s: %q is there %d times, wanted once: bring mends.go in line", e.file, e.old, strings.Count(texts[path], e.old))
		}
		texts[path] = strings.Replace(texts[path], e.old, e.with, 1)
	}
	replace := map[string]string{}
	for path, text := range texts {
		without := filepath.Join(dir, fmt.Sprintf("%d.go", len(replace)))
		if err := os.WriteFile(without, []byte(text), 0o600); err != nil {
			return "", err
		}
		replace[path] = without
	}
	list := filepath.Join(dir, "overlay.json")
	data, err := json.Marshal(map[string]any{"Replace": replace})
	if err == nil {
		err = os.WriteFile(list, data, 0o600)
	}
	return list, err
}
