# Functions for payloads. Descriptor 3 is the line to the lab.

# The lab's machine, as QEMU's user network shows it.
host=10.0.2.2

# step WORDS: what happens now, with the guest's time.
step() { echo "=== $* [$(cut -d' ' -f1 /proc/uptime) s]"; }

# event WORDS: tells the lab that something has been reached.
event() {
    step "event: $*"
    echo "$*" >&3
}

# await WORD: waits until the lab says so.
await() {
    read -r word <&3
    [ "$word" = "$1" ] || fail "the lab said '$word', not '$1'"
}

fail() {
    echo "FAILED: $*"
    exit 1
}

# same WHAT A B
same() { [ "$2" = "$3" ] || fail "$1: '$2' is not '$3'"; }

# fails WORD COMMAND...: the command must fail, and say WORD.
fails() {
    word=$1
    shift
    said=$("$@" 2>&1) && fail "$* succeeded"
    echo "$said"
    case $said in *"$word"*) ;; *) fail "it did not say '$word'" ;; esac
}
