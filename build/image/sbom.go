package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/package-url/packageurl-go"
)

// records is where an image has what dpkg knows of a package: see [rootfs.record].
const records = "var/lib/dpkg/status.d"

// imageBOM returns the bill of materials of an image: the driver with its modules, as
// cyclonedx-gomod found them, and the packages of Debian, as the image itself records
// them. The same image and modules give the same bill.
//
// The toolchain is what the driver was built with: its C library is part of the driver.
func imageBOM(modules *cdx.BOM, image v1.Image, repository string, built toolchain) (*cdx.BOM, error) {
	files, err := imageFiles(image, func(name string) bool {
		return path.Dir(name) == records || name == "usr/lib/os-release" || name == driverPath[1:]
	})
	if err != nil {
		return nil, err
	}
	distribution, packages, err := debianComponents(files)
	if err != nil {
		return nil, err
	}
	whole, err := imageComponent(image, repository)
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	driver := *modules.Metadata.Component
	driver.Version = whole.Version
	driver.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: sha256Hex(files[driverPath[1:]])}}

	linked, err := built.linked(config.Architecture, distribution)
	if err != nil {
		return nil, err
	}
	driver.Components = &linked

	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{Timestamp: config.Created.UTC().Format("2006-01-02T15:04:05Z"), Tools: modules.Metadata.Tools, Component: whole}
	components := append([]cdx.Component{driver}, packages...)
	contains := []string{driver.BOMRef}
	for _, p := range packages {
		contains = append(contains, p.BOMRef)
	}
	dependencies := []cdx.Dependency{{Ref: whole.BOMRef, Dependencies: &contains}}
	if modules.Components != nil {
		components = append(components, *modules.Components...)
	}
	if modules.Dependencies != nil {
		dependencies = append(dependencies, *modules.Dependencies...)
	}
	bom.Components, bom.Dependencies = &components, &dependencies
	return bom, nil
}

// linked returns what the driver for an architecture has of C: the static library, and
// with it what it was compiled with, as a property.
func (t toolchain) linked(arch string, from distribution) ([]cdx.Component, error) {
	versions, err := t.versions()
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(compilers, func(c compiler) bool { return c.arch == arch })
	library := from.component(map[string]string{"Package": compilers[i].libc, "Version": versions[compilers[i].libc], "Architecture": toolchainHost})
	var used []cdx.Property
	for _, name := range slices.Sorted(maps.Keys(versions)) {
		if strings.Contains(name, "gcc") || strings.Contains(name, "binutils") || strings.HasPrefix(name, "linux-libc-dev") {
			used = append(used, cdx.Property{Name: "btrfs-csi:toolchain:" + name, Value: versions[name]})
		}
	}
	library.Properties = &used
	return []cdx.Component{library}, nil
}

// imageComponent is the image itself.
func imageComponent(image v1.Image, repository string) (*cdx.Component, error) {
	digest, err := image.Digest()
	if err != nil {
		return nil, err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	url := packageurl.NewPackageURL("oci", "", path.Base(repository), digest.String(),
		packageurl.Qualifiers{{Key: "arch", Value: config.Architecture}, {Key: "repository_url", Value: repository}}, "").ToString()
	labels := config.Config.Labels
	return &cdx.Component{
		Type: cdx.ComponentTypeContainer, BOMRef: url, PackageURL: url,
		Name:        labels["org.opencontainers.image.title"],
		Description: labels["org.opencontainers.image.description"],
		Version:     labels["org.opencontainers.image.version"],
		Hashes:      &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: digest.Hex}},
	}, nil
}

// debianComponents reads the records of the packages, in the order of their names.
func debianComponents(files map[string][]byte) (from distribution, found []cdx.Component, err error) {
	os, err := fields(files["usr/lib/os-release"], "=")
	if err != nil {
		return from, nil, fmt.Errorf("/usr/lib/os-release: %w", err)
	}
	from = distribution{unquoted(os["ID"]), unquoted(os["VERSION_ID"])}
	for name, content := range files {
		if path.Dir(name) != records {
			continue
		}
		control, err := fields(content, ":")
		if err != nil {
			return from, nil, fmt.Errorf("%s: %w", name, err)
		}
		found = append(found, from.component(control))
	}
	if len(found) == 0 {
		return from, nil, fmt.Errorf("the image records no package in /%s", records)
	}
	slices.SortFunc(found, func(a, b cdx.Component) int { return strings.Compare(a.Name, b.Name) })
	return from, found, nil
}

// distribution is where packages come from: debian, 12.
type distribution struct{ id, version string }

// component is a package, by its control data.
func (d distribution) component(control map[string]string) cdx.Component {
	qualifiers := packageurl.Qualifiers{{Key: "arch", Value: control["Architecture"]}, {Key: "distro", Value: d.id + "-" + d.version}}
	// Advisories are about sources. The version of one is in brackets where it differs.
	if source := control["Source"]; source != "" {
		name, version, found := strings.Cut(source, " (")
		if found {
			name += "@" + strings.TrimSuffix(version, ")")
		}
		qualifiers = append(qualifiers, packageurl.Qualifier{Key: "upstream", Value: name})
	}
	url := packageurl.NewPackageURL("deb", d.id, control["Package"], control["Version"], qualifiers, "").ToString()
	c := cdx.Component{
		Type: cdx.ComponentTypeLibrary, BOMRef: url, PackageURL: url,
		Name: control["Package"], Version: control["Version"], Publisher: control["Maintainer"], Description: control["Description"],
	}
	if home := control["Homepage"]; home != "" {
		c.ExternalReferences = &[]cdx.ExternalReference{{Type: cdx.ERTypeWebsite, URL: home}}
	}
	return c
}

// fields reads lines of a name and a value. A line that begins with a blank goes on with
// the value before; the first line of a value is enough here.
func fields(text []byte, separator string) (map[string]string, error) {
	found := map[string]string{}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		line := lines.Text()
		if line == "" || line[0] == ' ' || line[0] == '\t' || line[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(line, separator)
		if !ok {
			return nil, fmt.Errorf("line %q has no %q", line, separator)
		}
		found[name] = strings.TrimSpace(value)
	}
	if len(found) == 0 {
		return nil, errors.New("it is empty, or is not there")
	}
	return found, nil
}

func unquoted(value string) string { return strings.Trim(value, `"'`) }

// imageFiles returns the content of those files of an image that are wanted, by their
// paths without the first slash.
func imageFiles(image v1.Image, wanted func(string) bool) (map[string][]byte, error) {
	content := mutate.Extract(image)
	defer content.Close()
	found := map[string][]byte{}
	for r := tar.NewReader(content); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		name := path.Clean(header.Name)
		if header.Typeflag != tar.TypeReg || !wanted(name) {
			continue
		}
		if found[name], err = io.ReadAll(r); err != nil {
			return nil, err
		}
	}
}
