# Makes the calls of storagectl's replay with docker-py, and prints a line for each:
# its name, ok, odd or fail, and what came back. The first that fails ends it.
#   worker.py SOCKET NONCE IMAGE ARCHIVE PULL
import sys
import time

import docker
from docker.errors import APIError, ImageNotFound, NotFound

socket, nonce, image, archive, pull = sys.argv[1:]
missing = "localhost/lab/no-such-image:1"
name = "client-" + nonce
look = (
    "echo $NONCE; echo env=$REPLAY; echo x >/data/x && echo volume=written;"
    " grep worker /etc/hosts | while read l; do echo \"host=$l\"; done;"
    " for n in $(ls /sys/class/net); do echo net=$n; done; exit 43"
)
env = {"NONCE": nonce, "REPLAY": nonce}
shell = ["/bin/busybox", "sh", "-c"]
state = {}


class Odd(Exception):
    pass


def connect():
    return docker.DockerClient(base_url="unix://" + socket, version="auto", timeout=60)


def version():
    state["client"] = connect()
    a, b = state["client"].version(), state["client"].version()
    assert a["Version"] == b["Version"], (a, b)
    return a["Version"]


def load():
    with open(archive, "rb") as f:
        return state["client"].images.load(f.read())[0].id


def present():
    return state["client"].images.get(image).id


def expect(error, call, *args, **words):
    try:
        call(*args, **words)
    except error as e:
        return str(e)
    raise AssertionError("no error")


def image_missing():
    return expect(ImageNotFound, state["client"].images.get, missing)


def create_missing():
    try:
        state["client"].containers.create(missing, "true", name=name + "-missing")
    except ImageNotFound as e:
        return str(e)
    except NotFound as e:
        raise Odd(str(e))
    raise AssertionError("no error")


def stream(ref):
    repository, tag = ref.rsplit(":", 1)
    for event in state["client"].api.pull(repository, tag=tag, stream=True, decode=True):
        if "error" in event:
            raise docker.errors.DockerException(event["error"])


def pull_missing():
    expect(ImageNotFound, state["client"].images.get, pull)
    stream(pull)
    return state["client"].images.get(pull).id


def pull_always():
    stream(pull)
    return state["client"].images.get(pull).id


def pull_error():
    try:
        stream(pull.rsplit(":", 1)[0] + ":no-such-tag")
    except docker.errors.DockerException as e:
        return str(e)
    raise Odd("the stream ends without an error")


def networks():
    state["nets"] = [state["client"].networks.create("%s-%d" % (name, i)) for i in (1, 2)]


def make(**words):
    return state["client"].containers.create(
        image, shell + [look], name=name, environment=env, labels={"lab.client": nonce}, **words
    )


def create():
    state["c"] = make(
        network=name + "-1", extra_hosts={"worker": "127.0.0.1"}, volumes={name: {"bind": "/data", "mode": "rw"}}
    )


def clash():
    try:
        make()
    except APIError as e:
        if "Conflict" in str(e) and "container name" in str(e):  # as Prefect's worker looks
            return str(e)
        raise Odd(str(e))
    raise AssertionError("two containers of one name")


def inspect():
    c = state["client"].containers.get(state["c"].id)
    assert c.status == "created", c.status
    assert c.labels["lab.client"] == nonce
    assert "REPLAY=" + nonce in c.attrs["Config"]["Env"]
    assert any(m.get("Name") == name and m["Destination"] == "/data" for m in c.attrs["Mounts"]), c.attrs["Mounts"]


def join():
    state["client"].networks.get(state["nets"][1].id).connect(state["c"])
    state["c"].reload()
    got = state["c"].attrs["NetworkSettings"]["Networks"]
    assert len(got) == 2, got


def start():
    state["c"].start()


def logs():
    other = connect()
    c = other.containers.get(state["c"].id)
    state["out"] = b"".join(c.logs(stream=True, follow=True)).decode()
    assert nonce in state["out"], state["out"]


def inside():
    lines = state["out"].splitlines()
    nets = [l for l in lines if l.startswith("net=") and l != "net=lo"]
    assert "env=" + nonce in lines and "volume=written" in lines, lines
    assert any(l.startswith("host=127.0.0.1") for l in lines), lines
    assert len(nets) == 2, lines


def exited():
    state["c"].reload()
    s = state["c"].attrs["State"]
    if s["Status"] == "stopped" and s["ExitCode"] == 43:
        raise Odd("stopped")
    assert s["Status"] == "exited" and s["ExitCode"] == 43, s


def wait():
    got = state["c"].wait()
    assert got["StatusCode"] == 43, got


def stop():
    c = state["client"].containers.run(
        image, shell + ["sleep 1000"], name=name + "-stop", network_mode="none", detach=True
    )
    c.reload()
    assert c.status == "running", c.status
    c.stop(timeout=2)
    c.reload()
    assert c.status == "exited", c.status


def auto_remove():
    c = state["client"].containers.run(
        image, shell + ["exit 0"], name=name + "-auto", network_mode="none", auto_remove=True, detach=True
    )
    odd = None
    for _ in range(600):
        try:
            state["client"].containers.get(c.id)
        except NotFound:
            if odd:
                raise Odd(odd)
            return
        except APIError as e:
            odd = str(e)
        time.sleep(0.1)
    raise AssertionError("still there")


def memory():
    try:
        c = state["client"].containers.create(
            image, shell + ["cat /sys/fs/cgroup/memory.max"], name=name + "-memory", network_mode="none",
            mem_limit="64m", memswap_limit="96m",
        )
        c.start()
    except APIError as e:
        raise Odd(str(e))
    c.wait()
    out = c.logs().decode().strip()
    if out != str(64 << 20):
        raise Odd("memory.max is " + out)


calls = [
    ("version", version), ("load", load), ("image", present), ("image-missing", image_missing),
    ("create-missing", create_missing), ("pull-missing", pull_missing), ("pull", pull_always),
    ("pull-error", pull_error), ("networks", networks), ("create", create), ("name-clash", clash),
    ("inspect", inspect), ("connect", join), ("start", start), ("logs", logs), ("inside", inside),
    ("exit-code", exited), ("wait", wait), ("stop", stop), ("auto-remove", auto_remove), ("memory", memory),
]
for what, call in calls:
    try:
        verdict, saw = "ok", call()
    except Odd as e:
        verdict, saw = "odd", e
    except Exception as e:
        verdict, saw = "fail", "%s: %s" % (type(e).__name__, e)
    print(what, verdict, " ".join(str(saw or "").split()), flush=True)
    if verdict == "fail":
        break
