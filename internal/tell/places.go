package tell

import (
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// Places are where the keys of a TOML file stand, by their path: task[0].args.user.
type Places map[string]unstable.Position

// Locate finds the places of all keys of a text that was decoded before.
func Locate(text []byte) Places {
	at := Places{}
	count := map[string]int{}
	var p unstable.Parser
	p.Reset(text)
	prefix := ""
	for p.NextExpression() {
		switch e := p.Expression(); e.Kind {
		case unstable.KeyValue:
			at.add(&p, e, prefix)
		case unstable.Table, unstable.ArrayTable:
			prefix = ""
			for it := e.Key(); it.Next(); {
				prefix = join(prefix, string(it.Node().Data))
				if it.IsLast() && e.Kind == unstable.ArrayTable {
					count[prefix]++
				}
				if n := count[prefix]; n > 0 {
					prefix = fmt.Sprintf("%s[%d]", prefix, n-1)
				}
				if _, known := at[prefix]; !known || it.IsLast() {
					at[prefix] = p.Shape(it.Node().Raw).Start
				}
			}
		}
	}
	return at
}

func (at Places) add(p *unstable.Parser, kv *unstable.Node, prefix string) {
	for it := kv.Key(); it.Next(); {
		prefix = join(prefix, string(it.Node().Data))
		at[prefix] = p.Shape(it.Node().Raw).Start
	}
	if v := kv.Value(); v.Kind == unstable.InlineTable {
		for it := v.Children(); it.Next(); {
			if it.Node().Kind == unstable.KeyValue {
				at.add(p, it.Node(), prefix)
			}
		}
	}
}

func join(prefix, key string) string {
	if prefix == "" {
		return key
	}
	return prefix + "." + key
}

// Of is where a key stands or, where it is not in the file, what it would stand in; its
// zero value: neither is.
func (at Places) Of(path string) unstable.Position {
	for path != "" {
		if p, ok := at[path]; ok {
			return p
		}
		path = path[:max(0, strings.LastIndexByte(path, '.'))]
	}
	return unstable.Position{}
}
