package libpoddb

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// rewriteJSON walks one JSON document and offers each scalar value (not the
// keys) with its path to edit, which gives the literal to put in its place, or
// nil to leave it; an empty literal takes a member of an array away, which must not
// be its first. All other bytes stay as they are: key order, spaces, unknown
// keys, the digits of numbers, escapes. A path holds object keys and, for array
// members, their index.
func rewriteJSON(doc []byte, edit func(path []string, value json.Token) ([]byte, error)) ([]byte, error) {
	type frame struct {
		array bool
		index int
		key   bool // next token is a key (objects only)
	}
	var (
		out    []byte
		copied int // doc[:copied] is in out
		stack  []frame
		path   []string
	)
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.UseNumber()
	// valueDone moves on to the next member of the enclosing array or object.
	valueDone := func() {
		if len(stack) == 0 {
			return
		}
		top := &stack[len(stack)-1]
		if top.array {
			top.index++
			path[len(path)-1] = strconv.Itoa(top.index)
		} else {
			top.key = true
		}
	}
	for {
		before := int(dec.InputOffset())
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%w: JSON record: %w", ErrDamaged, err)
		}
		if d, ok := tok.(json.Delim); ok {
			switch d {
			case '{':
				stack = append(stack, frame{key: true})
				path = append(path, "")
			case '[':
				stack = append(stack, frame{array: true})
				path = append(path, "0")
			default:
				stack = stack[:len(stack)-1]
				path = path[:len(path)-1]
				valueDone()
			}
			continue
		}
		if len(stack) > 0 && stack[len(stack)-1].key {
			path[len(path)-1], _ = tok.(string)
			stack[len(stack)-1].key = false
			continue
		}
		literal, err := edit(path, tok)
		if err != nil {
			return nil, err
		}
		if literal != nil {
			end := int(dec.InputOffset())
			start := before + len(doc[before:end]) - len(bytes.TrimLeft(doc[before:end], " \t\r\n,:"))
			if len(literal) == 0 { // with the comma before it
				if len(stack) == 0 || !stack[len(stack)-1].array || stack[len(stack)-1].index == 0 {
					return nil, fmt.Errorf("%w: JSON record: nothing comes before %v", ErrDamaged, path)
				}
				start = before
			}
			out = append(append(out, doc[copied:start]...), literal...)
			copied = end
		}
		valueDone()
	}
	if len(stack) != 0 || len(bytes.TrimSpace(doc)) == 0 {
		return nil, fmt.Errorf("%w: JSON record cut short", ErrDamaged)
	}
	return append(out, doc[copied:]...), nil
}

// quote gives s as a JSON string without escaping more than JSON demands.
func quote(s string) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		return nil, err
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}
