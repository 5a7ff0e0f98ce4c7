package dockerapi

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// frame is a part of a log, whose head says that length.
func frame(stream byte, length int, text string) string {
	head := make([]byte, 8)
	head[0] = stream
	binary.BigEndian.PutUint32(head[4:], uint32(length))
	return string(head) + text
}

func TestReadFrames(t *testing.T) {
	all := frame(1, 2, "ab") + frame(2, 3, "err") + frame(0, 1, "c")
	if out, errs, err := readFrames(strings.NewReader(all)); out != "abc" || errs != "err" || err != nil {
		t.Errorf("%q %q %v", out, errs, err)
	}
	// One that is cut off is what has come of it.
	for _, end := range []string{"\x01\x00", frame(1, 9, "d")} {
		if out, _, err := readFrames(strings.NewReader(all + end)); !strings.HasPrefix(out, "abc") || err != nil {
			t.Errorf("%q: %q %v", end, out, err)
		}
	}
	for _, bad := range []string{frame(4, 1, "x"), frame(3, 4, "gone"), frame(1, mostOfLog+1, "x"), frame(1, mostOfLog, strings.Repeat("x", mostOfLog)) + frame(2, 1, "x")} {
		if out, _, err := readFrames(strings.NewReader(bad)); err == nil {
			t.Errorf("%q gave %q", bad[:min(20, len(bad))], out[:min(20, len(out))])
		}
	}
}

// socket is a stand-in for podman's: real ones of the lab cannot limit memory, and
// none lies. It answers what handle has; all else is an empty list.
func socket(t *testing.T, handle map[string]http.HandlerFunc) *replay {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		for end, h := range handle {
			if strings.HasSuffix(r.URL.Path, end) {
				h(w, r)
				return
			}
		}
		fmt.Fprint(w, "[]")
	})
	srv := &http.Server{Handler: mux}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	r := &replay{opts: Options{Socket: path}, image: "image", nonce: "nonce", name: namePrefix + "test", id: "id"}
	if r.client, err = r.connect(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.client.Close() })
	return r
}

func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) }
}

// TestMemoryAnswers: what the replay makes of an engine that sets the limits it is
// asked for, of one that ignores them, and of one that cannot.
func TestMemoryAnswers(t *testing.T) {
	const honours = "memory.max=67108864\nmemory.swap.max=33554432\n"
	const ignores = "memory.max=max\nmemory.swap.max=max\n"
	for name, c := range map[string]struct {
		log   string
		start int
		odd   bool
		saw   string
	}{
		"honours": {honours, http.StatusNoContent, false, "memory 64 MiB, swap 32 MiB"},
		"ignores": {ignores, http.StatusNoContent, true, "it has no limit"},
		"refuses": {"", http.StatusInternalServerError, true, "fails here"},
	} {
		asked := limitsAsked{}
		r := socket(t, map[string]http.HandlerFunc{
			"/containers/create": func(w http.ResponseWriter, r *http.Request) {
				if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
					t.Error(err)
				}
				w.WriteHeader(http.StatusCreated)
				fmt.Fprint(w, `{"Id":"id"}`)
			},
			"/start": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(c.start) },
			"/wait":  says(`{"StatusCode":0}`),
			"/logs":  says(frame(1, len(c.log), c.log)),
		})
		saw, err := r.memory(t.Context())
		if errors.Is(err, errOdd) != c.odd || !c.odd && err != nil || !strings.Contains(saw, c.saw) {
			t.Errorf("%s: %q, %v", name, saw, err)
		}
		if asked.HostConfig.Memory != memoryLimit || asked.HostConfig.MemorySwap != swapLimit {
			t.Errorf("%s: it was asked for %+v", name, asked)
		}
	}
}

type limitsAsked struct {
	HostConfig struct{ Memory, MemorySwap int64 }
}

// TestLyingSocket: whoever answers on the socket cannot have the replay fill the
// memory, neither by a word of what is to come nor by what comes.
func TestLyingSocket(t *testing.T) {
	const most = 8 * mostSaid // what readers make room for as they go, all together
	r := socket(t, map[string]http.HandlerFunc{
		"/containers/id/logs": says(frame(1, 1<<32-1, "x")),
		"/containers/id/json": says("{}"),
		"/images/big/json": func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"Id":"`)
			for chunk := strings.Repeat("x", 1<<20); ; {
				if _, err := fmt.Fprint(w, chunk); err != nil {
					return
				}
			}
		},
	})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := r.logs(t.Context()); err == nil || !strings.Contains(err.Error(), "4294967295 bytes") {
		t.Errorf("the log: %v", err)
	}
	r.image = "big"
	if _, err := r.present(t.Context()); err == nil || !strings.Contains(err.Error(), "says more than") {
		t.Errorf("an image: %v", err)
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > most {
		t.Errorf("it took %d MB", took>>20)
	}
}
