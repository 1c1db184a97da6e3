/*
 * The cow-request discipline in Promela: writers, readers and a checkpoint over some clusters.
 *
 * The same steps as the model's: an operation arrives, then each I/O is one step, with the
 * bookkeeping that follows it up to the next I/O.  Waiting is a guard instead of a queue.
 *
 * -DWRITERS=n   writer i writes cluster i % CLUSTERS
 * -DREADERS=n   each reads all clusters (at most two), or with -DAPART reader i cluster i % CLUSTERS
 * -DCLUSTERS=n
 */
byte secondary[CLUSTERS];       /* whose data: 0 old, i+1 writer i's */
byte copy[CLUSTERS];          /* the hidden disk */
bool allocated[CLUSTERS];
bool done[CLUSTERS];
byte base[CLUSTERS];            /* what the secondary disk held at the last checkpoint */
byte requests[CLUSTERS];        /* how many requests in the list cover each cluster */
byte busy;                      /* requests in flight */
bool draining;

proctype Writer(byte me; byte c)
{
    byte old;

    skip;                       /* arrives */
    atomic { !draining -> busy++ };
    atomic { requests[c] == 0 -> requests[c]++ };
    if
    :: atomic { done[c] -> requests[c]-- }
    :: atomic { !done[c] -> old = secondary[c] };
       atomic {
           assert(old == base[c]);
           copy[c] = old; allocated[c] = true; done[c] = true; requests[c]--
       }
    fi;
    atomic { assert(allocated[c]); secondary[c] = me + 1; busy-- }
}

#ifdef APART
proctype Reader(byte c)
{
    bool copied;

    skip;                       /* arrives */
    atomic { !draining -> busy++ };
    atomic { requests[c] == 0 -> requests[c]++; copied = allocated[c] };
    atomic {
        assert((copied -> copy[c] : secondary[c]) == base[c]);
        requests[c]--; busy--
    }
}
#else
proctype Reader(byte c)
{
    bool first, second;

    skip;                       /* arrives */
    atomic { !draining -> busy++ };
    atomic {
        requests[0] == 0 && requests[1] == 0 ->
        requests[0]++; requests[1]++; first = allocated[0]; second = allocated[1]
    };
    if
    :: first == second              /* one I/O for both */
    :: atomic { first != second -> assert((first -> copy[0] : secondary[0]) == base[0]) }
    fi;
    atomic {
        assert(first != second || (first -> copy[0] : secondary[0]) == base[0]);
        assert((second -> copy[1] : secondary[1]) == base[1]);
        requests[0]--; requests[1]--; busy--
    }
}
#endif

proctype Checkpoint()
{
    byte c;

    draining = true;
    atomic {
        busy == 0 ->
        c = 0;
        do
        :: c < CLUSTERS -> done[c] = false; c++
        :: else -> break
        od
    };
    skip;                       /* the active disk is emptied */
    atomic {
        c = 0;
        do
        :: c < CLUSTERS ->
           allocated[c] = false; copy[c] = 0; base[c] = secondary[c]; c++
        :: else -> break
        od;
        c = 0; draining = false
    }
}

init {
    byte i;
    atomic {
        i = 0;
        do
        :: i < WRITERS -> run Writer(i, i % CLUSTERS); i++
        :: else -> break
        od;
        i = 0;
        do
        :: i < READERS -> run Reader(i % CLUSTERS); i++
        :: else -> break
        od;
        run Checkpoint();
        i = 0
    }
}
