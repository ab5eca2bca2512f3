# Runs a server program for Registrar and ends it when Registrar is gone.
#
# Registrar holds the other end of our standard input and writes nothing to it: the end of the
# input means that Registrar ended, even by `kill -9`. A temporary cluster is then removed too.
#
# usage: sh -c "$guard" guard remove|keep <cluster folder> <program> <argument>…
mode=$1 home=$2
shift 2
trap '' HUP INT TERM
exec 3<&0 </dev/null

"$@" 3<&- &
child=$!

{
  while read -r _; do :; done <&3
  if [ "$mode" = remove ]; then
    : >"$home/abandoned"
  else
    # The data are kept, so let the server end in order before it is made to.
    kill -s INT "$child"
    for _ in 1 2 3 4 5 6 7 8 9 10; do sleep 1; done
  fi
  kill -s QUIT "$child"
} &
watch=$!
exec 3<&-

wait "$child"
status=$?
kill -s KILL "$watch"
if [ -e "$home/abandoned" ]; then
  cd / && rm -rf -- "$home"
fi
exit "$status"
