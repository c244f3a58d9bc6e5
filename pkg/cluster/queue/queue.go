// Package queue has the keys that a controller reconciles.
package queue

import (
	"context"
	"errors"
	"sync"
	"time"

	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
)

// ErrPutOff is returned by a reconcile function for a key that it has put back into the
// queue itself.
var ErrPutOff = errors.New("put off")

// workers is how many keys of a queue are reconciled at a time.
const workers = 4

// New returns a queue of keys. One that fails comes again after a delay that grows
// from least to most.
func New[K comparable](least, most time.Duration) workqueue.TypedRateLimitingInterface[K] {
	return workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[K](least, most))
}

// Run reconciles the keys of a queue until ctx ends.
func Run[K comparable](ctx context.Context, queue workqueue.TypedRateLimitingInterface[K], reconcile func(context.Context, K) error) {
	context.AfterFunc(ctx, queue.ShutDown)
	var all sync.WaitGroup
	for range workers {
		all.Go(func() { work(ctx, queue, reconcile) })
	}
	all.Wait()
}

func work[K comparable](ctx context.Context, queue workqueue.TypedRateLimitingInterface[K], reconcile func(context.Context, K) error) {
	for {
		key, shutdown := queue.Get()
		if shutdown {
			return
		}
		switch err := reconcile(ctx, key); {
		case err == nil:
			queue.Forget(key)
		case !errors.Is(err, ErrPutOff):
			klog.FromContext(ctx).V(2).Info("Not reconciled yet", "key", key, "reason", err)
			queue.AddRateLimited(key)
		}
		queue.Done(key)
	}
}
