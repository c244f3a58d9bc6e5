// Command calls counts the calls of the driver's own functions in one CreateVolume and in one
// start with three volumes. It runs a test of pkg/driver in which every function and method of
// pkg, but no function literal, counts its calls. The sources are not changed: the build takes the
// counting ones from an overlay.
package main

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const counter = "github.com/btrfs-csi/btrfs-csi/pkg/meta/called"

// called is the package counter, callsTest the test.
var (
	//go:embed testdata/called.go
	called []byte
	//go:embed testdata/calls_test.go
	callsTest []byte
)

func main() {
	root := flag.String("root", "../..", "directory of the driver's module")
	flag.Parse()
	if err := run(*root); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(root string) error {
	root, err := filepath.Abs(root)
	if err != nil {
		return err
	}
	temp, err := os.MkdirTemp("", "calls")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	o := overlay{root: root, temp: temp, Replace: map[string]string{}}
	if err := filepath.WalkDir(filepath.Join(root, "pkg"), o.visit); err != nil {
		return err
	}
	if err := o.add("pkg/meta/called/called.go", called); err != nil {
		return err
	}
	if err := o.add("pkg/driver/calls_test.go", callsTest); err != nil {
		return err
	}
	data, err := json.Marshal(o)
	if err != nil {
		return err
	}
	list := filepath.Join(temp, "overlay.json")
	if err := os.WriteFile(list, data, 0o600); err != nil {
		return err
	}
	cmd := exec.Command("go", "test", "-count=1", "-vet=off", "-overlay", list, "-run", "^TestCalls$", "-v", "./pkg/driver")
	cmd.Dir, cmd.Stdout, cmd.Stderr = root, os.Stdout, os.Stderr
	return cmd.Run()
}

// overlay is what go build takes for files of the module.
type overlay struct {
	root, temp string
	Replace    map[string]string
}

// add makes content a file of the module.
func (o overlay) add(rel string, content []byte) error {
	at := filepath.Join(o.temp, fmt.Sprintf("%d.go", len(o.Replace)))
	o.Replace[filepath.Join(o.root, rel)] = at
	return os.WriteFile(at, content, 0o600)
}

// visit makes every function of a file count. No line is moved.
func (o overlay) visit(path string, d fs.DirEntry, err error) error {
	dir := filepath.Base(filepath.Dir(path))
	if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") || strings.HasSuffix(dir, "test") {
		return err
	}
	source, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, path, source, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	last := 0
	insert := func(at token.Pos, text string) {
		offset := set.Position(at).Offset
		out.Write(source[last:offset])
		out.WriteString(text)
		last = offset
	}
	insert(file.Name.End(), fmt.Sprintf("; import called %q", counter))
	counts := false
	for _, decl := range file.Decls {
		if f, is := decl.(*ast.FuncDecl); is && f.Body != nil {
			insert(f.Body.Lbrace+1, fmt.Sprintf(" called.Count(%q);", name(file.Name.Name, f)))
			counts = true
		}
	}
	if !counts {
		return nil
	}
	out.Write(source[last:])
	rel, err := filepath.Rel(o.root, path)
	if err != nil {
		return err
	}
	return o.add(rel, out.Bytes())
}

// name returns package.Function or package.Type.Method.
func name(in string, f *ast.FuncDecl) string {
	if f.Recv == nil {
		return in + "." + f.Name.Name
	}
	receiver := f.Recv.List[0].Type
	if star, is := receiver.(*ast.StarExpr); is {
		receiver = star.X
	}
	if generic, is := receiver.(*ast.IndexExpr); is {
		receiver = generic.X
	}
	return fmt.Sprintf("%s.%s.%s", in, receiver, f.Name.Name)
}
