/* The vCPU loop: accesses to plain and posted registers are answered here, every other exit is Python's. */

enum { POSTED_MAX = 4096 };

/* Bytes that the guest wrote and the device has not taken yet: how many were ever put and taken, and a ring of them. */
struct posted {
	uint64_t put, taken;
	uint8_t bytes[POSTED_MAX];
};

/* A register, or a row of them, that reads what was last put into it and does nothing else; or a posted register. */
struct plain {
	uint64_t address;
	uint32_t size;	    /* bytes; an access may not reach beyond them */
	uint32_t width;	    /* the only width of an access that is answered, in bytes; 0 = any */
	uint8_t *bytes;	    /* little-endian, as the guest sees them */
	uint8_t *gate;	    /* while this is 0 the accesses are Python's */
	struct posted *posted; /* not NULL: takes what is written, and the fields above mean nothing */
	uint64_t *accesses; /* counts those that were answered */
	bool writable;	    /* by the guest; if not, a write is Python's */
};

/* The plain and posted registers of one machine. */
struct plains;

/* NULL: no memory. */
struct plains *plains_open(void);
/* Replace them all: first those in port space, then those in memory, each part sorted by address. When this returns no
   vCPU touches the former ones. False: they are too many, and none is answered. */
bool plains_replace(struct plains *plains, const struct plain *registers, uint32_t ports, uint32_t pages);
/* A file descriptor that is readable soon after something was posted, for whoever lets the devices take it; from now on
   writes are posted. -1: there is none. */
int plains_timer(struct plains *plains);
/* What is posted from now on makes the timer go off anew. */
void plains_rewind(struct plains *plains);
void plains_close(struct plains *plains);

/* Run a vCPU until there is an exit for Python: 0, or the errno of KVM_RUN. *run* is its struct kvm_run. */
int vcpu_run(int fd, void *run, struct plains *plains);
