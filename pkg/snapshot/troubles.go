package snapshot

import (
	"context"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

// repeatTrouble is the time after which a lasting error is logged again.
const repeatTrouble = time.Hour

// troubles are the errors that were logged, by message and pool.
type troubles struct {
	mu     sync.Mutex // protects logged
	logged map[[2]string]trouble
}

type trouble struct {
	text string
	at   time.Time
}

// news reports whether an error of a pool (or of none, "") has to be logged: it is new, or an
// hour has passed.
func (t *troubles) news(message, pool string, err error) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.logged == nil {
		t.logged = map[[2]string]trouble{}
	}
	before := t.logged[[2]string{message, pool}]
	if before.text == err.Error() && time.Since(before.at) < repeatTrouble {
		return false
	}
	t.logged[[2]string{message, pool}] = trouble{err.Error(), time.Now()}
	return true
}

// complain logs an error of a check that is repeated.
func (e *Engine) complain(ctx context.Context, message, pool string, err error) {
	if e.troubles.news(message, pool, err) {
		klog.FromContext(ctx).Error(err, message, "pool", pool)
	}
}
