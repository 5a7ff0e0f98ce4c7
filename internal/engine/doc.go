// Package engine runs an ordered list of steps against a host so that a crash
// at any instant leaves a run that can be resumed or rolled back.
//
// The engine knows nothing of hosts, stores or clusters: a [Step] is four
// functions and a name. What makes a run durable is the [Journal], an
// append-only file of JSON lines, one write and one fsync a record, written
// before a step acts and again after its effect was seen.
//
// Nothing here believes an exit status: a step is done when its Holds says so.
package engine
