package host

import "testing"

// A parked line is a comment, comes back byte for byte whatever was changed
// around it, and goes with the comment that was made for it.
func TestParkFstab(t *testing.T) {
	for _, c := range []struct{ name, before, parked, dropped string }{
		{"by hand", "/dev/sda1 / ext4 defaults 0 1\nUUID=12-ab\t/srv/store  xfs\tnoatime 0 0\n# more\n",
			"/dev/sda1 / ext4 defaults 0 1\n# storagectl r2 has parked: UUID=12-ab\t/srv/store  xfs\tnoatime 0 0\n# more\n",
			"/dev/sda1 / ext4 defaults 0 1\n# more\n"},
		{"a run's", "# mine\n" + storeLine + "/x /y none bind 0 0",
			"# mine\n# storagectl r1\n# storagectl r2 has parked: " + storeLine[len("# storagectl r1\n"):] + "/x /y none bind 0 0",
			"# mine\n/x /y none bind 0 0"},
		{"another path, not ended", "/dev/sdb /srv/store/ xfs defaults",
			"# storagectl r2 has parked: /dev/sdb /srv/store/ xfs defaults", ""},
		{"none", "/dev/sdb /srv/other xfs defaults\r\n", "/dev/sdb /srv/other xfs defaults\r\n", "/dev/sdb /srv/other xfs defaults\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			parked, err := ParkFstab([]byte(c.before), "r2", "/srv/store")
			if err != nil || string(parked) != c.parked {
				t.Fatalf("parked: %q, %v", parked, err)
			}
			if has := HasParked(parked, "r2"); has != (c.parked != c.before) || HasParked(parked, "r") {
				t.Errorf("has parked: %v", has)
			}
			if again, err := ParkFstab(parked, "r2", "/srv/store"); err != nil || string(again) != c.parked {
				t.Errorf("parked again: %q, %v", again, err)
			}
			if back := UnparkFstab(append([]byte("# new\n"), parked...), "r2"); string(back) != "# new\n"+c.before {
				t.Errorf("given back: %q", back)
			}
			if gone := DropParked(parked, "r2"); string(gone) != c.dropped {
				t.Errorf("dropped: %q", gone)
			}
			// A line of the run's own beside it comes and goes by itself.
			with := edit(t, string(parked), "r2", store("/srv/store"))
			if without := edit(t, with, "r2"); string(UnparkFstab([]byte(without), "r2")) != c.before && c.before[len(c.before)-1] == '\n' {
				t.Errorf("the run's own line changed others: %q", without)
			}
		})
	}
}
