"""Many photos: walked, remembered, restored by several hands, and looked through afterwards.

    walk       which files there are, in a stable order, and where the result of each goes
    journal    what became of each of them, in OUT/.facefix/journal.sqlite
    workers    one job in, one outcome out; and the engines that have jobs done: in this process, or in several
    cluster    the engine over many machines, through Ray
    drive      the run: claims, hands out, records, goes on after whatever happens
    kept       what is stored beside a result so that a face can be taken back
    undo       faces taken back, and brought in again
    verify     the proof that the rest is as it was
    review     the board on which a person looks through it all

Only the process that drives the run opens the journal. Nothing here loads torch before a photo is restored.
"""
