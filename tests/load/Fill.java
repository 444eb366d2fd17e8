// Says "ready", then on a line fills 40 MiB of its heap, collects, and says what it holds and how often it has collected.
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.lang.management.GarbageCollectorMXBean;
import java.lang.management.ManagementFactory;
import java.lang.management.MemoryPoolMXBean;
import java.util.ArrayList;
import java.util.List;

public class Fill {
    static final List<byte[]> held = new ArrayList<>();

    public static void main(String[] args) throws Exception {
        System.out.println("ready");
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        while (lines.readLine() != null) {
            for (int block = 0; block < 40 * 16; block++) {
                held.add(new byte[64 * 1024]);
            }
            System.gc();
            System.out.println("filled " + old() + " " + fullCollections());
        }
    }

    static long old() {
        for (MemoryPoolMXBean pool : ManagementFactory.getMemoryPoolMXBeans()) {
            if (pool.getName().contains("Tenured")) {
                return pool.getUsage().getUsed();
            }
        }
        throw new IllegalStateException("the serial collector has a tenured generation");
    }

    static long fullCollections() {
        for (GarbageCollectorMXBean collector : ManagementFactory.getGarbageCollectorMXBeans()) {
            if (collector.getName().equals("MarkSweepCompact")) {
                return collector.getCollectionCount();
            }
        }
        throw new IllegalStateException("the serial collector has a full collection");
    }
}
