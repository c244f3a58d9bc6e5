package client

import "encoding/json"

// MetadataPatch returns the merge patch that gives an object the wanted annotations and labels,
// nil if it has them. The value "" removes a key.
func MetadataPatch(annotations, wantAnnotations, labels, wantLabels map[string]string) []byte {
	changed := func(have, want map[string]string) map[string]*string {
		change := map[string]*string{}
		for key, value := range want {
			if value == have[key] {
				continue
			}
			change[key] = nil
			if value != "" {
				change[key] = &value
			}
		}
		return change
	}
	metadata := map[string]any{}
	if c := changed(annotations, wantAnnotations); len(c) > 0 {
		metadata["annotations"] = c
	}
	if c := changed(labels, wantLabels); len(c) > 0 {
		metadata["labels"] = c
	}
	if len(metadata) == 0 {
		return nil
	}
	patch, _ := json.Marshal(map[string]any{"metadata": metadata}) // maps of strings: it cannot fail
	return patch
}
