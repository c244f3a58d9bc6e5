package main

import (
	"reflect"
	"strings"
	"testing"
)

func TestParseDefinition(t *testing.T) {
	got, err := parseDefinition("# about\n\nmount  mount umount # why\nbase-files /etc/os-release\n")
	if err != nil {
		t.Fatal(err)
	}
	want := definition{
		packages: []string{"mount", "base-files"},
		programs: []string{"mount", "umount"},
		files:    []string{"/etc/os-release"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if _, err := parseDefinition("\nmount # all of it\n"); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("a package of which nothing is kept gave error %v, want one with its line", err)
	}
}

func TestDefinitionIsValid(t *testing.T) {
	if _, err := parseDefinition(packagesFile); err != nil {
		t.Error(err)
	}
}
