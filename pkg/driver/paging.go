package driver

import (
	"encoding/base64"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// tokenPrefix marks tokens of this driver and the version of their format.
const tokenPrefix = "v1:"

// tokenAfter returns the token of the page after an ID. A token contains no index, so
// entries that are added or removed between two pages do not hide or repeat others.
func tokenAfter(id string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(tokenPrefix + id))
}

// readToken returns the ID in a token. It returns ABORTED for an invalid token, as CSI
// requires.
func readToken(token string) (after string, err error) {
	if token == "" {
		return "", nil
	}
	data, err := base64.RawURLEncoding.DecodeString(token)
	after, ok := strings.CutPrefix(string(data), tokenPrefix)
	if err != nil || !ok || !meta.ValidID(after) {
		return "", status.Errorf(codes.Aborted, "starting token %q is not valid; list again without it", token)
	}
	return after, nil
}

// page collects up to max entries of a walk, or all for 0. next is the token of the next
// page.
func page(token string, max int32, walk func(after string, fn func(meta.Entry) bool) error) (entries []meta.Entry, next string, err error) {
	if max < 0 {
		return nil, "", invalid("max_entries is %d, it must not be negative", max)
	}
	after, err := readToken(token)
	if err != nil {
		return nil, "", err
	}
	err = walk(after, func(e meta.Entry) bool {
		if max > 0 && len(entries) == int(max) {
			next = tokenAfter(entries[len(entries)-1].ID)
			return false
		}
		entries = append(entries, e)
		return true
	})
	return entries, next, err
}
