#!/bin/sh
# Takes the program and its units away. Settings, keys, certificates and data stay; --purge removes them too. Backups
# stay in any case.
set -eu
[ "$(id -u)" = 0 ] || { echo 'uninstall.sh: run this as root' >&2; exit 1; }
purge=no
case ${1:-} in
    '') ;;
    --purge) purge=yes ;;
    *) echo "uninstall.sh: unknown option $1 (--purge)" >&2; exit 1 ;;
esac
# Patterns are for stopping alone: `disable` takes names, a template's for all its instances.
systemctl stop broker-backup.timer broker.target 'broker-*.service' 2>/dev/null || :
for unit in /usr/lib/systemd/system/broker.target /usr/lib/systemd/system/broker-*.service \
    /usr/lib/systemd/system/broker-*.timer; do
    [ ! -f "$unit" ] || systemctl disable "${unit##*/}" 2>/dev/null || :
done
rm -f /usr/lib/systemd/system/broker.target /usr/lib/systemd/system/broker-*.service \
    /usr/lib/systemd/system/broker-*.timer
rm -rf /usr/lib/systemd/system/broker-*.service.d /opt/broker
rm -f /usr/local/bin/broker /usr/lib/sysusers.d/broker.conf /usr/lib/tmpfiles.d/broker.conf
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    # One that failed is known until then.
    systemctl reset-failed 'broker-*' 2>/dev/null || :
fi
if [ "$purge" = yes ]; then
    # With what `systemctl edit` left.
    rm -rf /etc/broker /var/lib/broker /etc/systemd/system/broker-*.d /etc/systemd/system/broker.target.d
    rm -f /etc/systemd/system/broker-*.service /etc/systemd/system/broker-*.timer /etc/systemd/system/broker.target
    [ ! -d /run/systemd/system ] || systemctl daemon-reload
    userdel broker 2>/dev/null || :
    echo 'kept: /var/backups/broker'
else
    echo 'kept: /etc/broker and /var/lib/broker (keys, certificates, archive), /var/backups/broker'
fi
