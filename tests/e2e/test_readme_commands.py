"""Every command in README.md's table is typed, with every option it is told to have, until it has ended with every exit
status it is told to end with. A row without such lines here fails."""

from __future__ import annotations

import re
import shlex
import signal

from netlab import Lab, wait_for
from netlab.clients import connect
from tests.e2e.instance import PROGRAMS, Instance
from tests.e2e.test_top import Terminal
from tests.readme import Command, commands

# STATUS COMMAND [:: what it says]; `file NAME`: from now on the files are this one of FILES.
# NOWHERE: places where there is no daemon, nor a kernel to be worked on.
LINES = """
0 validate :: valid: 1 proxy in 1 file
1 validate BROKEN :: unknown key 'prot' (did you mean 'port'?)
0 diff
0 plan
0 plan --detailed-exitcode
0 status :: Synced
0 test :: 1
0 history --number 1 :: applied
0 explain --from 192.168.3.4 --to PROXY:80 --protocol tcp --interface eth0 :: ONE:8080
0 connections --proxy web --target ONE:8080 --client CLIENT --state established --sort idle --limit 3 --count :: 1
0 connections flush --proxy web --target ONE:8080 --client 192.0.2.0/24 --state established
0 connections flush --all :: 1
0 drain ONE:8080 --proxy web --wait --timeout 30
0 undrain ONE:8080 --proxy web
0 stats :: web
130 stats --watch --interval 0.2 :: web
0 events --kind config_applied --proxy web
130 events --follow :: target_drained
0 top --interval 0.2 --sort connections :: web
0 interfaces --all :: eth0
0 doctor :: errors: 0
1 confirm :: nothing

0 suspend
file moved
1 diff :: TWO
0 plan --out PLAN :: TWO
2 plan --detailed-exitcode :: TWO
1 status :: suspended
0 apply PLAN --yes --allow-empty --confirm-within 5m :: confirm
0 resume
0 confirm
0 rollback
0 rollback 2

0 proxy add api --interface eth0 --port 81 --target ONE:8080 --address PROXY --protocol udp --mode dnat --balance source
0 proxy list :: api
0 proxy show api :: source
0 route add api 192.0.2.0/24 TWO:8080 --weight 3
0 target add api ONE:8080 --weight 2 --route 192.0.2.0/24
0 target weight api ONE:8080 5 --route 192.0.2.0/24
0 target remove api ONE:8080 --route 192.0.2.0/24
0 route add api 198.51.100.0/24 --deny
0 route remove api 198.51.100.0/24
0 proxy remove api
0 proxy add not --interface eth0 --port 82 --target ONE:8080 --no-apply
0 route add not 192.0.2.0/24 --deny --no-apply
0 route remove not 192.0.2.0/24 --no-apply
0 target add not TWO:8080 --no-apply
0 target weight not TWO:8080 5 --no-apply
0 target remove not TWO:8080 --no-apply
0 proxy remove not --no-apply
1 proxy show api :: api
1 proxy add web --interface eth0 --port 80 --target ONE:8080 :: web
1 proxy remove api :: api
1 route add api 192.0.2.0/24 --deny :: api
1 route remove web 192.0.2.0/24 :: 192.0.2.0/24
1 target add api ONE:8080 :: api
1 target remove api ONE:8080 :: api
1 target weight api ONE:8080 5 :: api
1 explain --from 192.168.3.4 --to PROXY:80 --interface nosuch :: nosuch
1 drain 203.0.113.99:80 :: 203.0.113.99
1 undrain 203.0.113.99:80 :: 203.0.113.99
1 rollback 99 :: 99
1 top :: terminal

file failing
1 test :: THREE
1 apply --yes :: THREE
file broken
1 proxy list :: did you mean
2 diff :: did you mean
2 plan :: did you mean
1 plan --detailed-exitcode :: did you mean
1 doctor :: did you mean
file first
0 apply --yes

1 history NOWHERE :: no names with a dot
1 suspend NOWHERE :: no names with a dot
1 resume NOWHERE :: no names with a dot
1 connections NOWHERE :: no names with a dot
1 connections flush --all NOWHERE :: no names with a dot
1 stats NOWHERE :: no names with a dot
1 events NOWHERE :: no revproxyd listens
1 interfaces NOWHERE :: no names with a dot
1 down NOWHERE :: no names with a dot
0 down :: detached from eth0
"""
FIRST = """\
apiVersion: revproxy/v1
proxies:
  - name: web
    listen: {interfaces: [eth0], port: 80}
    default_target: {ip: ONE, port: 8080}
tests:
  - {from: 192.168.3.4, to: "PROXY:80", expect: {target: ONE}}
"""
FILES = {
    "first": FIRST,
    "moved": FIRST.replace("ONE", "TWO"),
    "failing": FIRST.replace("{target: ONE}", "{target: THREE}"),
    "broken": FIRST.replace("port: 80}", "prot: 80}"),
}


def typed() -> dict[Command, list[list[str]]]:
    """The table, and for each command its lines above, as words, the exit status first."""
    table = commands()
    found: dict[Command, list[list[str]]] = {each: [] for each in table}
    for line in LINES.splitlines():
        words = line.partition("::")[0].split()
        if words and words[0].isdigit():
            named = [each for each in table if words[1 : 1 + len(each.name.split())] == each.name.split()]
            found[max(named, key=lambda each: len(each.name))].append(words)
    return found


def test_every_option_and_exit_status_of_the_table_is_typed_here() -> None:
    interrupted = 128 + signal.SIGINT
    for command, lines in typed().items():
        options = {word for words in lines for word in words if word.startswith("--")}
        assert options == command.options, command.name
        statuses = {int(words[0]) for words in lines}
        assert statuses - {interrupted} == command.statuses - {interrupted}, command.name


def test_every_line_does_what_the_table_says(lab: Lab, instance: Instance) -> None:
    names = {f"{word}": str(each.ip4) for word, each in zip(("ONE", "TWO", "THREE"), lab.backends, strict=True)}
    names |= {
        "PROXY": str(lab.proxy4),
        "CLIENT": str(lab.client4),
        "NOWHERE": f"--run-dir {lab.directory}/none --bpffs-dir /sys/fs/bpf/a.b",
    }
    names |= {"PLAN": str(lab.directory / "plan"), "BROKEN": str(lab.directory / "broken.yaml")}

    def here(text: str) -> str:
        return re.sub(rf"\b({'|'.join(names)})\b", lambda found: names[found[0]], text)

    (lab.directory / "broken.yaml").write_text(here(FILES["broken"]))
    instance.write(here(FIRST))
    daemon = instance.start_daemon()
    held = connect(lab.client, (lab.proxy4, 80))
    for line in LINES.splitlines():
        if line == "0 drain ONE:8080 --proxy web --wait --timeout 30":
            held.close()
        if line.startswith("file "):
            instance.write(here(FILES[line.removeprefix("file ")]))
        elif line:
            words, _, says = here(line).partition("::")
            status, *arguments = shlex.split(words)
            found, said = type_in(instance, arguments, says.strip())
            assert (found, says.strip() in said, "Traceback" in said) == (int(status), True, False), f"{line}\n{said}"
    assert daemon.wait(timeout_sec=20) == 0
    lab.assert_clean(instance.bpffs_dir)


def type_in(instance: Instance, words: list[str], says: str) -> tuple[int, str]:
    """Exit status, and everything said, of a command; one that shows things until it is ended is, once it has said
    its part."""
    if words[0] == "top" and "--interval" in words:
        terminal = Terminal(instance, *words)
        wait_for(lambda: says in "".join(terminal.frame()), "a picture", timeout_sec=30)
        terminal.press("q")
        status = terminal.process.wait(timeout=20)
        terminal.close()
        return status, terminal.output
    if not {"--watch", "--follow"} & set(words):
        done = instance.run(*words)
        return done.returncode, done.stdout + done.stderr
    watching = instance.lab.spawn(instance.lab.proxy, PROGRAMS / "revproxyctl", *words, env=instance.env)

    def seen() -> bool:
        if "--follow" in words:  # it tells only what happens from now on
            for undo in ("", "un"):
                instance.ctl(f"{undo}drain", str(instance.lab.backends[0].ip4))
        return says in watching.output()

    wait_for(seen, says, timeout_sec=30)
    watching.send(signal.SIGINT)
    return watching.wait(timeout_sec=20), watching.output()
