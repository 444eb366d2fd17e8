import com.sun.net.httpserver.HttpServer;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.util.ArrayList;
import java.util.concurrent.Executors;

/**
 * A service with a cache. Each request makes half a megabyte of garbage. The cache takes SHARE percent of the heap within
 * SECONDS, from a line on standard input on; what no longer fits is thrown away, and the service goes on.
 */
public class Heap {
    private static final ArrayList<Object[]> cache = new ArrayList<>();

    /** About 64 KB in objects that a collection has to visit. */
    private static Object[] entry() {
        Object[] objects = new Object[1000];
        for (int i = 0; i < objects.length; i++) objects[i] = new long[6];
        return objects;
    }

    private static synchronized void work() {
        Object[][] garbage = new Object[8][];
        for (int i = 0; i < garbage.length; i++) garbage[i] = entry();
    }

    private static void fill(double share, double seconds) throws InterruptedException {
        double wanted = Runtime.getRuntime().maxMemory() * share / 100 / 64000;
        long began = System.nanoTime();
        while (cache.size() < wanted) {
            double due = Math.min(1, (System.nanoTime() - began) / 1e9 / seconds) * wanted;
            try {
                while (cache.size() < due) cache.add(entry());
            } catch (OutOfMemoryError full) {
                for (int i = 0; i < 2 && !cache.isEmpty(); i++) cache.remove(cache.size() - 1);
            }
            Thread.sleep(20);
        }
    }

    public static void main(String[] args) throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), Integer.parseInt(args[0])), 0);
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.createContext("/", exchange -> {
            int status = 200;
            try {
                work();
            } catch (OutOfMemoryError full) {
                status = 503;
            }
            exchange.sendResponseHeaders(status, -1);
            exchange.close();
        });
        server.start();
        System.out.println("listening");
        System.in.read();
        fill(Double.parseDouble(args[1]), Double.parseDouble(args[2]));
    }
}
