#!/bin/sh
# Writes the shells' completion scripts for a click program: PROGRAM NAME SHARE. SHARE is /usr/share or stands for it.
set -eu
program=$1 name=$2 share=$3
# Click makes them, and leaves the shell's name out of none; the variable it goes by is the program's in capitals.
variable=_$(printf %s "$name" | tr a-z- A-Z_)_COMPLETE
write() { # SHELL FILE
    mkdir -p "$(dirname "$2")"
    env "$variable=$1_source" "$program" >"$2"
    test -s "$2"
}
# zsh loads the file when it is asked the first time: then it has to complete as well (click does so from 8.1.4 on).
completes_when_loaded() { # FILE
    grep -q loadautofunc "$1" || sed -i "s/^\(compdef \(_[a-z_]*\) [^;]*\);*\$/if [[ \$zsh_eval_context[-1] == loadautofunc ]]; then\n    \2 \"\$@\"\nelse\n    \1\nfi/" "$1"
}
write bash "$share/bash-completion/completions/$name"
write zsh "$share/zsh/vendor-completions/_$name"
completes_when_loaded "$share/zsh/vendor-completions/_$name"
write fish "$share/fish/vendor_completions.d/$name.fish"
