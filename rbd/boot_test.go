package rbd

import (
	"syscall"
	"testing"
	"time"
)

// TestMapBesideService: after a power cut the service of a boot waits until the watch of
// before is over, and so does a run that goes on with the image: it takes what the service
// has mapped by then.
func TestMapBesideService(t *testing.T) {
	t.Parallel() // it mostly waits
	h := admin(t)
	h.StaleTime = 50 * time.Second // a watch lives on for half a minute
	spec := newImage(t, h, 100<<20)
	m := mustMap(t, h, spec)
	if err := syscall.Kill(m.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	watched := func(n int, by func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			img, err := h.Look(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			if len(img.Watchers) == n && by() {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("want %d watchers: %+v", n, img)
			}
		}
	}
	watched(1, func() bool {
		ms, err := h.Mapped(t.Context(), spec)
		return err == nil && len(ms) == 1 && ms[0].Dead
	})
	m.Dead = true
	if err := h.Unmap(t.Context(), m); err != nil { // a boot has nothing of it
		t.Fatal(err)
	}
	service := admin(t)
	service.RunDir = h.RunDir
	type answer struct {
		m   Mapping
		err error
	}
	served := make(chan answer, 1)
	go func() {
		m, err := service.attach(t.Context(), spec, MapOptions{Mapper: Fuse})
		served <- answer{m, err}
	}()
	watched(2, func() bool { return true })
	m, err := h.Map(t.Context(), spec, MapOptions{Mapper: Fuse})
	if by := <-served; err != nil || by.err != nil || m != by.m {
		t.Errorf("mapped %+v (%v), served %+v (%v)", m, err, by.m, by.err)
	}
}
