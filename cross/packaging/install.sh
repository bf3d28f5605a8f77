#!/bin/sh
# Installs Tidegate from this folder, where there is no dpkg: ./install.sh. Run it again from a newer folder to upgrade. As root.
# ./install.sh --uninstall takes the program away and keeps configuration and state; with --purge as well these go too.
set -eu
cd "$(dirname "$0")"

readonly program=/usr/local/bin/tidegate unit=/etc/systemd/system/tidegate.service config=/etc/tidegate state=/var/lib/tidegate
readonly share=/usr/local/share

fail() {
    printf 'error: %s\n\nhint: %s\n' "$1" "$2" >&2
    exit 1
}

systemd() { [ -d /run/systemd/system ]; }

uninstall() {
    if systemd && [ -e "$unit" ]; then systemctl disable --quiet --now tidegate.service; fi
    rm -f "$program" "$unit" "$share"/man/man1/tidegate.1.gz "$share"/man/man1/tidegate-*.1.gz \
        "$share"/bash-completion/completions/tidegate "$share"/zsh/site-functions/_tidegate \
        "$share"/fish/vendor_completions.d/tidegate.fish
    rm -rf "$share/tidegate" /usr/local/lib/tidegate
    # Folders that nobody else has something in.
    for folder in man/man1 bash-completion/completions bash-completion zsh/site-functions zsh fish/vendor_completions.d fish; do
        rmdir "$share/$folder" 2>/dev/null || true
    done
    if systemd; then systemctl daemon-reload; fi
    if [ "$1" = purge ]; then
        rm -rf "$config" "$state"
        userdel tidegate 2>/dev/null || true
        echo "Tidegate is gone, with its configuration and state."
    else
        echo "Tidegate is gone. $config and $state are still there; --uninstall --purge removes them too."
    fi
}

install_all() {
    # A copy that was cut must not replace what runs.
    sha256sum --quiet --check SHA256SUMS || fail "a file is not as it was packed" "unpack the tarball again, or copy it again"
    ./bin/tidegate --version >/dev/null || fail \
        "this machine cannot run the program" "take the tarball for its processor, $(uname -m); it needs glibc 2.31 or newer, not musl"

    if ! grep -q '^tidegate:' /etc/passwd; then
        useradd --system --user-group --home-dir "$state" --no-create-home --shell /usr/sbin/nologin tidegate
    fi
    # In one step, and the program that runs stays whole.
    install -D -m 755 bin/tidegate "$program.new"
    mv "$program.new" "$program"
    [ -e "$config/gateway.toml" ] || install -D -m 644 etc/gateway.toml "$config/gateway.toml"
    install -d -m 750 -o tidegate -g tidegate "$state"
    (cd share && find . -type f -exec install -D -m 644 {} "$share/{}" \;)
    if [ -d lib ]; then (cd lib && find . -type f -exec install -D -m 644 {} /usr/local/lib/{} \;); fi

    if systemd; then
        install -D -m 644 tidegate.service "$unit"
        systemctl daemon-reload
        systemctl enable --quiet tidegate.service
        systemctl restart tidegate.service
        echo "Tidegate is installed, and runs. Configure it in $config/gateway.toml; \`tidegate status\` shows what it does."
    else
        cat <<END
Tidegate is installed, and does not run: there is no systemd here. Have your init, or a line in its scripts, start it again
and again as the user \`tidegate\`:
    while :; do su -s /bin/sh tidegate -c "$program run --config $config/gateway.toml"; sleep 2; done
SIGTERM ends it, SIGHUP has it read $config/gateway.toml again.
END
    fi
}

[ "$(id -u)" = 0 ] || fail "only root may install" "sudo ./install.sh"
case "${1:-} ${2:-}" in
" ") install_all ;;
"--uninstall ") uninstall keep ;;
"--uninstall --purge") uninstall purge ;;
*) fail "\`$*\` is not known" "./install.sh, or ./install.sh --uninstall [--purge]" ;;
esac
