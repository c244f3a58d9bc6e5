// Package load has workers that send random requests to a driver, as sidecars and kubelets do,
// and write files, as pods do. They repeat an unanswered request under the same name until it is
// answered, and compare each answer with the model.
//
//	load.go       draws what a worker does next, and repeats requests
//	requests.go   requests that change something
//	questions.go  requests that change nothing, whose answer the model knows
//	provoke.go    requests that the driver must refuse
//	gate.go       stops all workers between two requests
//	counts.go     counts requests and answers; latency.go has how long they took
package load
