package driver

import (
	"encoding/base64"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/btrfs-csi/btrfs-csi/pkg/meta"
)

// tokenPrefix distinguishes our tokens from other text, and this format from later ones.
const tokenPrefix = "v1:"

// tokenAfter returns the token for the page behind an ID. It names the last ID
// rather than a number: what comes and goes between two pages neither hides nor
// repeats anything else.
func tokenAfter(id string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(tokenPrefix + id))
}

// readToken returns the ID in a token; ABORTED, as the spec has it, for what is
// none of ours.
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

// page collects up to max entries of a walk, 0 for all, and the token for the
// next ones.
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
