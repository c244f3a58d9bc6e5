package btrfs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
	"strings"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"golang.org/x/sys/unix"
)

func sh(t *testing.T, c string) { o, e := exec.Command("bash", "-c", c).CombinedOutput(); t.Logf("%s => %v\n%s", c, e, o) }

func cstats(t *testing.T, m string) string {
	i, err := Filesystem(m)
	if err != nil { t.Fatal(err) }
	b, _ := os.ReadFile("/sys/fs/btrfs/" + i.FSID.String() + "/commit_stats")
	return strings.Split(string(b), "\n")[0]
}

func TestExploreCompression(t *testing.T) {
	m := btrfstest.Mount(t)
	v := filepath.Join(m, "v")
	t.Log(Create(v))
	for _, s := range []string{"zstd", "zstd:5", "zstd:15", "zstd:99", "zstd:-3", "zstdx", "zlib:9", "lzo", "lzo:3", "none", "no", "bogus"} {
		e := SetCompression(v, s)
		g, e2 := Compression(v)
		f := filepath.Join(v, "f"+strings.ReplaceAll(s, ":", "_"))
		os.WriteFile(f, make([]byte, 1<<16), 0o644)
		b := make([]byte, 64)
		n, e3 := unix.Getxattr(f, "btrfs.compression", b)
		t.Logf("%q set=%v get=%q,%v child=%q,%v", s, e, g, e2, b[:max(n, 0)], e3)
	}
	t.Log(SetCompression(v, ""), SetCompression(v, ""))
	t.Log(SetNoDataCow(v, true), SetCompression(v, "zstd"))
	t.Log(SetNoDataCow(v, false), SetCompression(v, "zstd"), SetNoDataCow(v, true))
	sp, err := SpaceOf(m + "/.")
	t.Logf("%+v %v", sp, err)
	fi, err := Filesystem(m)
	t.Logf("%+v %v", fi, err)
	d, err := Devices(m)
	t.Logf("%+v %v", d, err)
	in, err := Info(v)
	t.Logf("%+v %v", in, err)
	e, err := Exists(m, in.ID)
	t.Log(e, err)
	t.Log(Destroy(v))
	e, err = Exists(m, in.ID)
	t.Log(e, err)
	// level persists over remount?
}

func TestExploreCommit(t *testing.T) {
	m := btrfstest.Mount(t, btrfstest.MountOptions("commit=300"))
	d := filepath.Join(m, "d")
	os.Mkdir(d, 0o755)
	t.Log("mkdir", cstats(t, m))
	Sync(m)
	t.Log("sync", cstats(t, m))
	t.Log(Create(d + "/fs"))
	t.Log("create", cstats(t, m))
	t.Log(Sync(d))
	t.Log("sync", cstats(t, m))
	t.Log(Sync(d))
	t.Log("sync2", cstats(t, m))
	t.Log(Destroy(d + "/fs"))
	t.Log("destroy", cstats(t, m))
	t.Log(Sync(d))
	t.Log("sync", cstats(t, m))
	time.Sleep(time.Second)
	t.Log("1s", cstats(t, m))
	t.Log(Sync(d))
	t.Log("sync again", cstats(t, m))
	for i := range 32 {
		os.Mkdir(fmt.Sprint(d, "/", i), 0o755)
		Create(fmt.Sprint(d, "/", i, "/fs"))
	}
	t.Log("32", cstats(t, m))
	for i := range 32 {
		Sync(fmt.Sprint(d, "/", i))
	}
	t.Log("32 synced", cstats(t, m))
	Snapshot(d+"/snap", d+"/1/fs", true)
	t.Log("snap", cstats(t, m))
}

func TestExploreQgroupDrop(t *testing.T) {
	for _, mode := range []QuotaMode{QuotaFull, QuotaSimple} {
		t.Run(string(mode), func(t *testing.T) {
			m := btrfstest.Mount(t, btrfstest.MountOptions("commit=5"))
			t.Log(Quota(m))
			t.Log("disable", DisableQuota(m))
			t.Log("rescan off", RescanQuota(m), WaitRescan(m))
			_, err := QgroupOf(m, 257)
			t.Log("of off", err, CreateQgroup(m, NewQgroupID(1, 1)), RemoveQgroup(m, 257), LimitQgroup(m, 257, 1))
			t.Log(EnableQuota(m, mode), EnableQuota(m, QuotaFull), EnableQuota(m, QuotaSimple), EnableQuota(m, "foo"))
			t.Log(WaitRescan(m))
			t.Log(Quota(m))
			t.Log("rescan", RescanQuota(m), WaitRescan(m))
			v := m + "/v"
			t.Log(Create(v))
			os.WriteFile(v+"/f", make([]byte, 10<<20), 0o644)
			unix.Sync()
			in, _ := Info(v)
			id := NewQgroupID(0, in.ID)
			t.Log(QgroupOf(m, id))
			t.Log("remove live:", RemoveQgroup(m, id), "create level0:", CreateQgroup(m, NewQgroupID(0, 9999)))
			sh(t, "btrfs qgroup show -re "+m)
			Snapshot(m+"/s", v, true)
			t.Log(Destroy(v), Sync(m))
			start := time.Now()
			for range 120 {
				if _, err := QgroupOf(m, id); err != nil {
					t.Log("gone after", time.Since(start), err)
					break
				}
				time.Sleep(100 * time.Millisecond)
			}
			q, err := QgroupOf(m, id)
			t.Log("with snapshot held", q, err, "remove:", RemoveQgroup(m, id))
			t.Log(Destroy(m+"/s"), Sync(m))
			start = time.Now()
			for range 120 {
				if _, err := QgroupOf(m, id); err != nil {
					t.Log("gone after", time.Since(start), err)
					break
				}
				time.Sleep(100 * time.Millisecond)
			}
			q, err = QgroupOf(m, id)
			t.Log("all gone", q, err, "remove:", RemoveQgroup(m, id))
			sh(t, "btrfs qgroup show -re "+m)
			// assign
			g := NewQgroupID(1, 77)
			t.Log(CreateQgroup(m, g), CreateQgroup(m, g))
			Create(m + "/w")
			os.WriteFile(m+"/w/f", make([]byte, 1<<20), 0o644)
			unix.Sync()
			wi, _ := Info(m + "/w")
			wid := NewQgroupID(0, wi.ID)
			t.Log(AssignQgroup(m, wid, g))
			t.Log(AssignQgroup(m, wid, g))
			t.Log(AssignQgroup(m, NewQgroupID(0, 5000), g))
			t.Log(QgroupMembers(m, g))
			t.Log("remove g", RemoveQgroup(m, g))
			t.Log(LimitQgroup(m, g, 5<<20))
			t.Log(Quota(m))
			t.Log("nested in limited group", Create(m+"/w/n"))
			e := os.WriteFile(m+"/w/n/f", make([]byte, 20<<20), 0o644)
			ss := exec.Command("sync").Run()
			t.Log("nested write beyond 1/<id> limit:", e, ss)
			f, _ := os.Create(m + "/w/n/g")
			_, e = f.Write(make([]byte, 8<<20)); e2 := f.Sync(); f.Close()
			t.Log("nested 2:", e, e2)
			sh(t, "btrfs qgroup show -rep "+m)
			t.Log("destroy", Destroy(m+"/w"), Sync(m))
			time.Sleep(6 * time.Second)
			Sync(m)
			sh(t, "btrfs qgroup show -rep "+m)
		})
	}
}
