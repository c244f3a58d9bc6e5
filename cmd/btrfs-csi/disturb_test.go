package main

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/btrfs-csi/btrfs-csi/pkg/btrfs/btrfstest"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool"
	"github.com/btrfs-csi/btrfs-csi/pkg/pool/pooltest"
)

// disturbVariable contains a random seed. Between steps of such a driver, others commit or
// steps wait. test/reliability/node starts these drivers.
const disturbVariable = "BTRFS_CSI_TEST_DISTURB"

const (
	// often means that one in so many steps follows a commit, and one in so many a wait.
	often = 3
	// longest is the longest wait before a step.
	longest = 5 * time.Millisecond
)

func becomeDisturbed() {
	text := os.Getenv(disturbVariable)
	if text == "" {
		return
	}
	seed, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		panic(err)
	}
	var mu sync.Mutex // protects random
	random := rand.New(rand.NewPCG(seed, 0))
	wrapHost = func(h pool.Host) pool.Host {
		return pooltest.Around(h, func(s pooltest.Step, do func() error) error {
			mu.Lock()
			commit, wait := random.IntN(often) == 0, time.Duration(0)
			if random.IntN(often) == 0 {
				wait = time.Duration(random.Int64N(int64(longest)))
			}
			mu.Unlock()
			time.Sleep(wait)
			if commit {
				if err := btrfstest.Sync(filepath.Join(stateOf(os.Args), "pools", s.Pool)); err != nil {
					panic(err)
				}
			}
			if commit || wait > 0 {
				klog.Background().Info("Disturbed", "step", s.Method, "slot", s.Slot, "commit", commit, "wait", wait)
			}
			return do()
		})
	}
}

// stateOf returns the state directory of a command line.
func stateOf(args []string) string {
	const flag = "--state-dir="
	for _, arg := range args {
		if len(arg) > len(flag) && arg[:len(flag)] == flag {
			return arg[len(flag):]
		}
	}
	return ""
}
