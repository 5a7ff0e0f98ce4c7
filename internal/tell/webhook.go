package tell

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/storagectl/storagectl/internal/brief"
	"github.com/storagectl/storagectl/internal/host"
)

// The headers of a webhook.
const (
	headerSignature = "X-Storagectl-Signature" // sha256=HMAC(secret, timestamp "." body), in hexadecimal
	headerTimestamp = "X-Storagectl-Timestamp" // seconds since 1970, of this attempt
	headerDelivery  = "X-Storagectl-Delivery"  // the event's id, the same in each attempt
)

// Sign is the signature of a webhook's body.
func Sign(secret []byte, timestamp string, body []byte) string {
	h := hmac.New(sha256.New, secret)
	h.Write([]byte(timestamp + "."))
	h.Write(body)
	return "sha256=" + hex.EncodeToString(h.Sum(nil))
}

// againError is a failure that another attempt may not meet.
type againError struct{ err error }

func (e *againError) Error() string { return e.err.Error() }
func (e *againError) Unwrap() error { return e.err }

// post makes one attempt. What it returns never has more of the URL than the host:
// the rest may be a secret.
func (l *line) post(ctx context.Context, e Event, body []byte) error {
	t := l.target
	ctx, cancel := context.WithTimeout(ctx, t.timeout())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.URL, bytes.NewReader(body))
	if err != nil {
		return errors.New("its url cannot be read")
	}
	now := strconv.FormatInt(time.Now().Unix(), 10)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "storagectl")
	req.Header.Set(headerTimestamp, now)
	req.Header.Set(headerDelivery, e.ID)
	if t.SecretFile != "" {
		secret, err := host.ReadSecret(t.SecretFile)
		if err != nil {
			return err
		}
		req.Header.Set(headerSignature, Sign(secret, now, body))
	}
	client, err := t.client()
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("it did not answer within %s", brief.Time(t.timeout()))
		}
		return &againError{err}
	}
	_ = res.Body.Close()
	switch c := res.StatusCode; {
	case c/100 == 2:
		return nil
	case c/100 == 3:
		return fmt.Errorf("it answers %d: a redirect is not followed; give the url that it leads to", c)
	case c/100 == 5, c == http.StatusRequestTimeout, c == http.StatusTooManyRequests, c == http.StatusTooEarly:
		return &againError{fmt.Errorf("it answers %d", c)}
	default:
		return fmt.Errorf("it answers %d", c)
	}
}

// client speaks with this receiver alone: no redirect takes the event elsewhere, and
// no proxy of the environment sees it.
func (t Target) client() (*http.Client, error) {
	tr := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}}
	if t.CAFile != "" {
		pem, err := host.ReadTrusted(t.CAFile)
		if err != nil {
			return nil, err
		}
		tr.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !tr.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("there is no certificate in %s", t.CAFile)
		}
	}
	if t.Proxy != "" {
		u, err := url.Parse(t.Proxy)
		if err != nil {
			return nil, errors.New("its proxy cannot be read")
		}
		tr.Proxy = http.ProxyURL(u)
	}
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, nil
}
