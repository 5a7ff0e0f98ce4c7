# Makes the calls of storagectl's replay with the docker command, and prints a line
# for each: its name, ok, odd or fail, and what came back. The first that fails ends it.
#   worker.sh SOCKET NONCE IMAGE ARCHIVE PULL
export DOCKER_HOST=unix://$1 DOCKER_CONFIG=/tmp/docker-config-$2
nonce=$2 image=$3 archive=$4 pull=$5
missing=localhost/lab/no-such-image:1
name=client-$nonce
look='echo $NONCE; echo env=$REPLAY; echo x >/data/x && echo volume=written
grep worker /etc/hosts | while read l; do echo "host=$l"; done
for n in $(ls /sys/class/net); do echo net=$n; done; exit 43'
d() { timeout 60 docker "$@"; }
# refused WORDS COMMAND…: it must fail, and say that.
refused() {
	words=$1; shift
	if out=$("$@" 2>&1); then echo "no error: $out"; return 1; fi
	case $out in *"$words"*) ;; *) echo "$out"; return 1 ;; esac
}
make() { d create --name "$name" -e NONCE="$nonce" -e REPLAY="$nonce" --label lab.client="$nonce" "$@" "$image" /bin/busybox sh -c "$look"; }

version() { d version; }
load() { d load -i "$archive"; }
image() { d image inspect "$image"; }
image_missing() { refused "No such image" d image inspect "$missing"; }
create_missing() { refused "o such image" d create --pull never --name "$name-missing" "$missing" true; }
pull_missing() { refused "No such image" d image inspect "$pull" && d create --pull missing --name "$name-pull" "$pull" true && d rm "$name-pull" && d image inspect "$pull"; }
pull() { d pull "$pull"; }
pull_error() { d pull "${pull%:*}:no-such-tag" && return 9; return 0; }
networks() { d network create "$name-1" && d network create "$name-2"; }
create() { make --network "$name-1" --add-host worker:127.0.0.1 -v "$name:/data"; }
clash() { refused "container name" make; }
inspect() {
	got=$(d inspect -f '{{.State.Status}} {{index .Config.Labels "lab.client"}} {{.Config.Env}} {{range .Mounts}}{{.Name}}:{{.Destination}}{{end}}' "$name") || return
	case $got in "created $nonce "*"REPLAY=$nonce"*" $name:/data") ;; *) echo "$got"; return 1 ;; esac
}
join() {
	d network inspect "$name-2" && d network connect "$name-2" "$name" || return
	got=$(d inspect -f '{{len .NetworkSettings.Networks}}' "$name") && [ "$got" = 2 ]
}
start() { d start "$name"; }
logs() { d logs -f "$name" >"/tmp/log-$nonce" 2>&1 && grep -q "^$nonce" "/tmp/log-$nonce"; }
inside() {
	l=/tmp/log-$nonce
	cat "$l"
	grep -q "^env=$nonce" "$l" && grep -q ^volume=written "$l" && grep -q ^host=127.0.0.1 "$l" && [ "$(grep ^net= "$l" | grep -vc 'net=lo')" = 2 ]
}
exited() {
	got=$(d inspect -f '{{.State.Status}} {{.State.ExitCode}}' "$name") || return
	echo "$got"
	case $got in "exited 43") ;; "stopped 43") return 9 ;; *) return 1 ;; esac
}
wait_for() { got=$(d wait "$name") && echo "$got" && [ "$got" = 43 ]; }
stop() {
	d run -d --name "$name-stop" --network none "$image" /bin/busybox sleep 1000 || return
	got=$(d inspect -f '{{.State.Running}}' "$name-stop") && [ "$got" = true ] && d stop -t 2 "$name-stop" || return
	got=$(d inspect -f '{{.State.Status}}' "$name-stop") && echo "$got" && [ "$got" = exited ]
}
auto_remove() {
	d run -d --rm --name "$name-auto" --network none "$image" /bin/busybox true || return
	for _ in $(seq 300); do
		out=$(d inspect "$name-auto" 2>&1) || case $out in *"o such"*) return 0 ;; esac
		sleep 0.2
	done
	return 1
}
memory() {
	d run -d --name "$name-memory" --network none --memory 64m --memory-swap 96m "$image" /bin/busybox cat /sys/fs/cgroup/memory.max || return 9
	d wait "$name-memory" && got=$(d logs "$name-memory") || return
	echo "$got"
	[ "$got" = $((64 << 20)) ] || return 9
}

while read -r call function; do
	saw=$($function 2>&1 </dev/null); status=$?
	case $status in 0) verdict=ok ;; 9) verdict=odd ;; *) verdict=fail ;; esac
	printf '%s %s %.300s\n' "$call" $verdict "$(printf %s "$saw" | tr -s '[:space:]' ' ')"
	[ $verdict != fail ] || break
done <<'END'
version version
load load
image image
image-missing image_missing
create-missing create_missing
pull-missing pull_missing
pull pull
pull-error pull_error
networks networks
create create
name-clash clash
inspect inspect
connect join
start start
logs logs
inside inside
exit-code exited
wait wait_for
stop stop
auto-remove auto_remove
memory memory
END
