// Package model has a journal of requests and answers. For any two positions in it, the Model
// knows which volumes and snapshots must and may have existed between them, and with which size
// and content.
package model
