# What a measured guest does, as its command line says: serve, measure its devices, its disk or its card, or end at once.
read -r up idle < /proc/uptime
echo "XENOLITH-INIT $up"

rate() {
    echo "BEGIN $1"
    shift
    "$@"
    echo "END $?"
}
blocks() { dd if="$1" of="$2" bs="$3" count="$4" "$5=direct" 2> /dev/null; }
disk() {
    until [ -b "$1" ]; do sleep 0.1; done
    rate "read 1 MiB" blocks "$1" /dev/null 1M 64 iflag
    rate "read 4 KiB" blocks "$1" /dev/null 4k 1000 iflag
    rate "write 1 MiB" blocks /dev/zero "$1" 1M 64 oflag
    rate "write 4 KiB" blocks /dev/zero "$1" 4k 1000 oflag
}
fetch() { wget -q -O - http://10.0.0.1/file | cmp - /tmp/file; }
pings() { ping -A -q -c 100 10.0.0.1 > /dev/null; }
# Lines to the host and back, each after the one before, over one connection.
lines() {
    mkfifo /tmp/lines
    nc 10.0.2.2 "$1" < /tmp/lines | {
        echo line
        count=0
        while read -r line && [ $((count += 1)) -lt "$2" ]; do echo line; done
        [ "$count" = "$2" ]
    } > /tmp/lines
}
download() { [ "$(wget -q -O - "http://10.0.2.2:$1/" | wc -c)" = "$2" ]; }

case " $(cat /proc/cmdline) " in
*" measure=server "*)
    dd if=/dev/zero of=/tmp/file bs=1M count=24 2> /dev/null
    httpd -h /tmp
    echo SERVING
    sleep 1000000
    ;;
*" measure=devices "*)
    disk /dev/xvda
    rate "round trips" pings
    dd if=/dev/zero of=/tmp/file bs=1M count=24 2> /dev/null
    rate "fetch" fetch
    ;;
*" measure=disk "*)
    disk "/dev/$(sed -n 's/.* disk=\([a-z0-9]*\) .*/\1/p' /proc/cmdline)"
    ;;
*" measure=card "*)
    until ip route | grep -q default; do udhcpc -i eth0 -q -n > /dev/null 2>&1; done
    set -- $(sed -n 's/.* ports=\([0-9]*\),\([0-9]*\).*/\1 \2/p' /proc/cmdline)
    rate "round trips" lines "$2" 200
    rate "fetch" download "$1" $((24 << 20))
    ;;
esac
