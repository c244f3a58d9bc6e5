package main

import (
	_ "embed" // the definition
	"fmt"
	"strings"
)

//go:embed packages
var packagesFile string

// definition lists the packages of an image and the files that it keeps of them.
type definition struct {
	packages []string // names
	programs []string // names in /usr/bin or /usr/sbin
	files    []string // patterns of absolute paths
}

// parseDefinition reads the file packages.
func parseDefinition(text string) (definition, error) {
	var d definition
	for n, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if len(words) == 1 {
			return d, fmt.Errorf("packages, line %d: nothing is kept of %s; name its programs or files", n+1, words[0])
		}
		d.packages = append(d.packages, words[0])
		for _, word := range words[1:] {
			if strings.HasPrefix(word, "/") {
				d.files = append(d.files, word)
			} else {
				d.programs = append(d.programs, word)
			}
		}
	}
	return d, nil
}
