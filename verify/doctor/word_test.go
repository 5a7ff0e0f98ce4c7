package doctor

import (
	"os/exec"
	"testing"
)

// A shell takes for one word what is made one, whatever is in it.
func TestWord(t *testing.T) {
	all := []string{"", "localhost/lab/base:1", "/a b", "x; touch /tmp/x", "$(id)", "`id`", `it's`, "a\nb", `"`, `\`, "-n", "*", "~root", "#"}
	for _, s := range all {
		out, err := exec.CommandContext(t.Context(), "sh", "-c", "printf %s. "+word(s)).Output()
		if err != nil || string(out) != s+"." {
			t.Errorf("%q became %q: %v", s, out, err)
		}
	}
	if got := words([]string{"a", "b c"}); got != "a 'b c'" {
		t.Error(got)
	}
}
