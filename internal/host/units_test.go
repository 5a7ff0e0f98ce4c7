package host

import (
	"os"
	"testing"
)

// TestLastPIDFile: the last file that has the line has the word, whatever those before
// it say, and what cannot be read is passed over.
func TestLastPIDFile(t *testing.T) {
	texts := map[string]string{
		"unit": "[Service]\nPIDFile=/run/a.pid\n", "note": "[Service]\n# PIDFile=/run/b.pid\nEnvironment=A=PIDFile\n",
		"in": "[Service]\n  PIDFile = /run/c.pid\n", "none": "[Service]\nPIDFile=\n",
	}
	read := func(path string) ([]byte, error) {
		if text, is := texts[path]; is {
			return []byte(text), nil
		}
		return nil, os.ErrNotExist
	}
	for _, c := range []struct {
		want  string
		files []string
	}{
		{"unit", []string{"unit"}}, {"unit", []string{"unit", "note", "gone"}}, {"in", []string{"unit", "in", "note"}},
		{"none", []string{"unit", "in", "none"}}, {"", []string{"note"}}, {"", nil},
	} {
		if got, err := lastPIDFile(c.files, read); got != c.want || err != nil {
			t.Errorf("%v: %q, %v", c.files, got, err)
		}
	}
}
